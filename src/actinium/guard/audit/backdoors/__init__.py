"""Whether a trigger was planted, in images or in text, and its removal."""
