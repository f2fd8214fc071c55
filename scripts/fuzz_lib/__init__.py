"""Seeded damage to real models, and what edgeprof does with it."""
