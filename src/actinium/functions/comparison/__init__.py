"""Which of several activation functions: paired runs on one task, and what they leave in the network."""
