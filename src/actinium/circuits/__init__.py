"""Which components cause a behaviour: one file per method."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "attribution": ["attribution_patch"],
        "corruption": ["GaussianNoise", "corrupt_gaussian", "corrupt_tokens"],
        "detection": ["detect"],
        "effects": ["Effects"],
        "nodes": ["Node"],
        "patching": ["patch"],
        "paths": ["path_patch"],
        "repetition": ["repeated_names", "repeated_tokens", "task_from_ids"],
        "tasks": ["suitable_tasks"],
        "windows": ["patch_window"],
    },
)
