"""The check-up: what stands out in a model's activations, and a report about it."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "checkup": ["scan"],
        "document": ["Report"],
        "sample": ["Sample", "read"],
        "schema": ["Document", "Finding", "json_schema"],
    },
)
