"""How activation analysis is used in a field."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "embedding_regressor": ["EmbeddingRegressor"],
        "nuclei": ["bw2", "liquid_drop_terms", "nuclei_near_stability", "read_nuclei", "semf"],
        "number_geometry": [
            "components",
            "concept_alignment",
            "fit_helix",
            "latent_topography",
            "pc_ablation_curve",
        ],
    },
)
