"""How similar two representations are."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "fact_query_gap": ["fact_query_gap", "same_length"],
        "hierarchy": ["gap_recovered", "hierarchy_path_score", "lca_distance"],
        "layerwise": ["depth_slope", "layer_pairs", "layerwise_similarity"],
    },
)
