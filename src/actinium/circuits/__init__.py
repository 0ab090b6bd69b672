"""Which components cause a behaviour: one file per method."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "patching.ablate": ["ablate"],
        "patching.ablations": ["ActivationNoise", "Directional"],
        "graph.circuit": ["CircuitGraph"],
        "patching.attribution": ["attribution_patch"],
        "patching.corruption": ["GaussianNoise", "corrupt_gaussian", "corrupt_tokens"],
        "patching.detection": ["detect"],
        "patching.effects": ["Effects"],
        "patching.nodes": ["Node"],
        "patching.partial": ["Interrupted"],
        "patching.patch": ["patch"],
        "patching.paths": ["path_patch"],
        "patching.repetition": ["repeated_names", "repeated_tokens", "task_from_ids"],
        "patching.tasks": ["named_task", "suitable_tasks"],
        "patching.windows": ["patch_window"],
    },
)
