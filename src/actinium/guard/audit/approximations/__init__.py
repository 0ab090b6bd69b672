"""What approximated activations do to a guarded behaviour."""
