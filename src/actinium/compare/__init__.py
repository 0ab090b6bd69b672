"""How similar two representations are."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "canonical_correlation": ["canonical_correlations", "pwcca", "svcca"],
        "cka": ["debiased_cka", "linear_cka"],
        "fact_query_gap": ["fact_query_gap", "same_length"],
        "feature_matching": ["FeatureCorrelation", "filter_matches", "match_features_by_correlation", "top_tokens"],
        "geometry": ["knn_jaccard", "mmcs", "procrustes_similarity"],
        "hierarchy": ["gap_recovered", "hierarchy_path_score", "lca_distance"],
        "layerwise": ["depth_slope", "layer_pairs", "layerwise_similarity"],
        "representational_similarity": ["dissimilarities", "rsa"],
        "universality": ["feature_space_similarity"],
    },
)
