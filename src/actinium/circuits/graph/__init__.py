"""Circuits as graphs: edges between the parts of a model, how they are found and how a circuit is judged."""
