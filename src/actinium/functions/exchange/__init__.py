"""Putting another operator where a finished network has one: activation functions, grafts, whole blocks."""
