"""Sparse dictionaries: what they compute, how they are trained, and the files they come in."""
