"""A small world with known facts, the models trained on it, and tasks to study them with."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=["accuracy", "corpus", "facts", "lexicon", "shipped", "tasks", "train"],
    submod_attrs={
        "accuracy": ["evaluate"],
        "recipe": ["Recipe"],
        "shipped": ["heldout_text", "load", "names", "path"],
    },
)
