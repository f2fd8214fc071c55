"""What a million inferences cost: device profiles, the price book, machine detection and the arithmetic."""
