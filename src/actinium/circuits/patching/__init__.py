"""Activations of one run put into another, and the estimates of it."""
