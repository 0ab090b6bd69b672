"""How few edits of a text flip the state that a guard rests on."""
