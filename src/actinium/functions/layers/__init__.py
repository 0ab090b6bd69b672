"""Activations that look at more than one number: over channels, places, time or a distribution."""
