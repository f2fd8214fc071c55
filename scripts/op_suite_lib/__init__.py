"""All recipes on some thousand one-op models: what breaks, by kind."""
