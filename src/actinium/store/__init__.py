"""Activations on disk: made by `create`, opened by `open`, read by row, by batch, by context and by rank."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "batches": ["Batches"],
        "create": ["create"],
        "documents": ["Documents", "read_documents"],
        "manifest": ["Manifest"],
        "reader": ["Activations"],
        "statistics": ["Statistics"],
        "store": ["Store", "open"],
        "stored": ["StoredModel"],
        "tables": ["Place"],
    },
)
