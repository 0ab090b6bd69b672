"""Directions and subspaces that carry a variable, and how they pass from layer to layer."""
