"""Which neurons carry a guarded behaviour, and how few of them."""
