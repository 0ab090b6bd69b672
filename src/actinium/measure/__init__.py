"""What the activations look like: each measurement for plain tensors and, streaming, for a whole model."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "attention": ["attention_entropy", "attention_summary", "received_attention"],
        "dead": ["dead_units", "firing_frequency", "saturated_share", "saturated_units"],
        "intervention": ["MassiveIntervention", "massive_intervention", "perplexity"],
        "lens": ["compare_logits", "logit_lens"],
        "massive": ["MassiveActivationReport", "find_massive_activations", "is_massive", "massive_entries"],
        "moments": ["activation_moments", "excess_kurtosis"],
        "norms": ["growth_rate", "norm_growth"],
        "outliers": ["channel_kurtosis", "channel_ratio", "outlier_channels"],
        "ppl_sparsity": ["largest_within", "ppl_p_sparsity"],
        "quantisation": ["quantisation_sensitivity", "quantised", "round_to_nearest", "sqnr"],
        "rank": [
            "components_for",
            "effective_rank",
            "entropy_rank",
            "participation_ratio",
            "stable_rank",
        ],
        "similarity": ["hsic", "layer_similarity", "linear_cka", "mean_cosine"],
        "sparsing_law": ["SparsingLaw", "WidthDepthLaw"],
        "sparsity": ["activation_ratio", "activation_sparsity", "fat_sparsity", "topk_sparsity"],
        "truncation": [
            "CettCurve",
            "apply_thresholds",
            "cett",
            "cett_thresholds",
            "down_projection",
            "output_magnitude",
        ],
    },
)
