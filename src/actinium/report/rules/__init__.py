"""What counts as a finding: rules over measured numbers."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__, submod_attrs={"rule": ["Evidence", "Found", "Rule"], "table": ["RULES"]}
)
