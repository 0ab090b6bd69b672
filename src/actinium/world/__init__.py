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
        "digits",
        "edits",
        "facts",
        "image_models",
        "image_recipe",
        "image_train",
        "lexicon",
        "modular",
        "nested",
        "preference",
        "shapes",
        "shipped",
        "tasks",
        "train",
        "variants",
    ],
    submod_attrs={
        "accuracy": ["evaluate"],
        "recipe": ["Recipe"],
        "shipped": ["heldout_images", "heldout_text", "load", "names", "path"],
    },
)
