"""Many devices at once: which cases belong to which, whose turn it is on each, and what ends when one of them does."""
