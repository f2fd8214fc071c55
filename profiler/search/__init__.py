"""The search: finds the frontier of variants, backends, batches and threads within a time budget, by racing (docs/search.md)."""
