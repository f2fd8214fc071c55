"""What the study scripts share: driving a campaign with something beside it, counting, and writing tables."""
