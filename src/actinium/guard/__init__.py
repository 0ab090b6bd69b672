"""Can a model be trusted: attacks, audits and defences."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=["audit"],
    submod_attrs={
        "attribution_maps": ["attribution_map", "integrated_gradients"],
        "attribution_robustness": [
            "attribution_robustness",
            "kendall_from_cosine",
            "state_agreement",
            "topk_intersection",
        ],
        "igr": ["AttributionProtection", "IGRegularizer"],
        "perturbation": ["Perturbed", "ifia", "pgd"],
    },
)
