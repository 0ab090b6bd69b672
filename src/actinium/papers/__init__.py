"""The published systems, and for those that are done the experiment that examines their claim."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={"contract": ["Evidence", "Paper"], "registry": ["catalogue", "find", "paper", "reproduce"]},
)
