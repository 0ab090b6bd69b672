"""Concept-based similarity reasoning: prototypes of named concepts, found in patches of an image."""
