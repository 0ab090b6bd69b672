"""Activation functions that learn their shape, number by number."""
