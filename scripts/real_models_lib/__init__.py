"""Real models with labelled data from package registries: one file per model. No part of the installed package."""
