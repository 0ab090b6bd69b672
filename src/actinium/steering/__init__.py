"""Change behaviour at inference: vectors, operators, conditions and schedules, one file per method."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "application": ["relative_strength", "steer", "steering_edits"],
        "extraction": ["direction_of", "extract", "from_latents"],
        "operators": ["Affine", "ClampCoordinate", "Gate", "PiecewiseAdd", "PreserveNorm", "Rotate", "ScheduledAdd"],
        "optimised_vector": ["optimise"],
        "vector": ["SteeringVector", "compose"],
    },
)
