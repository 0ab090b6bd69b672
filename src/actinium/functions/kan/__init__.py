"""Kolmogorov-Arnold networks: edges that learn a function, their training, pruning and formulas, and tables."""
