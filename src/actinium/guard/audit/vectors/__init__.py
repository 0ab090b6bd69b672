"""What one added vector does to a guarded behaviour, and what notices it."""
