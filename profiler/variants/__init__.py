"""Transformations of a model: one recipe per file, one line in the registry. See docs/adding-a-variant.md."""
