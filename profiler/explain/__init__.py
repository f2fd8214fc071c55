"""What really ran, and why a variant is not faster: evidence from both cases of a comparison, and the causes ranked."""
