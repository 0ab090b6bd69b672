"""A small world with known facts, the models trained on it, and tasks to study them with."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=[
        "accuracy",
        "bilingual",
        "choices",
        "compiled",
        "corpus",
        "edits",
        "facts",
        "lexicon",
        "modular",
        "nested",
        "preference",
        "shipped",
        "tasks",
        "train",
        "variants",
    ],
    submod_attrs={
        "accuracy": ["evaluate"],
        "recipe": ["Recipe"],
        "shipped": ["heldout_text", "load", "names", "path"],
    },
)
