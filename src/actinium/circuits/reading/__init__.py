"""What single parts do: what they write towards the answer, their roles, and which task they serve."""
