"""Can a model be trusted: attacks, audits and defences."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={},
)
