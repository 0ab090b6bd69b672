"""A small world with known facts, the models trained on it, and tasks to study them with."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=[
        "accuracy",
        "backdoors",
        "bilingual",
        "choices",
        "compiled",
        "contrastive",
        "contrastive_train",
        "contrasts",
        "corpus",
        "digits",
        "edits",
        "facts",
        "habits",
        "image_models",
        "image_recipe",
        "image_train",
        "judging",
        "lexicon",
        "modular",
        "nested",
        "organisms",
        "preference",
        "reasoning",
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
