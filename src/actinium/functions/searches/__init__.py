"""Searches for activation functions and settings, and what decided their outcome."""
