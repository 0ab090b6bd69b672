"""Where facts are kept, and editing them in the weights."""
