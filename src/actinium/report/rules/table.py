"""The table of findings: every rule with its condition, its limits, their source, and why it matters.

`docs/scan.md` shows this table; `python -m actinium.report.write_docs` writes it there.
"""

from __future__ import annotations

from actinium.report.rules import heads, residual, rounding, soundness, units
from actinium.report.rules.rule import Rule

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "broken-weights",
        "finite",
        "critical",
        "a weight is NaN or infinite",
        {},
        "definition",
        "The file or the training run is broken; every number that depends on these weights is meaningless.",
        soundness.broken_weights,
    ),
    Rule(
        "not-finite",
        "finite",
        "critical",
        "an activation is NaN or infinite",
        {},
        "definition",
        "Everything computed after this site is affected. In half precision it is mostly an overflow beyond 65504.",
        soundness.not_finite,
    ),
    Rule(
        "worse-than-uniform",
        "prediction",
        "critical",
        "loss above the logarithm of the size of the vocabulary",
        {},
        "closed form: the cross-entropy of an even guess",
        "Either the weights are not trained, or the tokenizer or the text do not fit the model. Then the other "
        "findings are about a model out of its depth.",
        soundness.worse_than_uniform,
    ),
    Rule(
        "no-better-than-counts",
        "prediction",
        "warning",
        "loss above the entropy of the frequencies of the predicted tokens, and below that of an even guess",
        {},
        "closed form: the cross-entropy of a guess that knows only how often each token occurs in this text",
        "The model gains nothing from the context, as on text of another kind or language than it was trained on. "
        "Scan it with text of its own kind before you trust the other findings.",
        soundness.no_better_than_counts,
    ),
    Rule(
        "one-class",
        "classes",
        "warning",
        "one class is predicted for at least {share} of at least {rows} inputs",
        {"share": 0.95, "rows": 20},
        "ours",
        "On varied inputs this is mostly a wrong normalisation or wrong channel order; check how the inputs are "
        "prepared.",
        soundness.one_class,
    ),
    Rule(
        "massive-activations",
        "massive",
        "warning",
        "magnitude above {magnitude} and at least {ratio} times the median of the layer (means over sequences); a "
        "note if zeroing them multiplies the perplexity by at most {perplexity}",
        {"magnitude": 100, "ratio": 1000, "perplexity": 1.5},
        "Sun et al., 2024, section 2; Owen et al., 2025; the limit on perplexity is ours",
        "They act as constants that later layers rely on. A quantiser that scales by the largest value leaves "
        "nothing of the rest, and editing these positions breaks the model.",
        residual.massive,
    ),
    Rule(
        "int4-breaks",
        "quantisation",
        "warning",
        "less than {agreement} of the top predictions stay when all weights are rounded to int4",
        {"agreement": 0.9},
        "round to nearest with one scale per output channel, as in Dettmers et al., 2022; the limit is ours",
        "Plain rounding to 4 bits is not enough for this model: it needs smaller groups, calibration, or more bits "
        "in the layers that suffer most.",
        rounding.int4_breaks,
    ),
    Rule(
        "dead-units",
        "dead",
        "warning",
        "a unit is not zero at less than {frequency} of the positions; a note below {share} of all units",
        {"frequency": 0.001, "share": 0.01},
        "Luo et al., 2024 (dead: activated on less than 0.1 % of the tokens); the limit on the share is ours",
        "They cost memory and time and do nothing here. Many of them point to a learning rate that was too high or "
        "to poor initialisation; they can be pruned if they are silent on your data too.",
        units.never_fire,
    ),
    Rule(
        "one-direction",
        "rank",
        "warning",
        "stable rank below {rank} in a layer of at least {width} dimensions",
        {"rank": 2, "width": 8},
        "closed form: a stable rank below 2 says that one direction holds more than half of the variance "
        "(Rudelson and Vershynin, 2007)",
        "Cosine similarities and distances between activations are then about this one direction. Remove it or "
        "standardise before you compare, cluster or probe.",
        residual.one_direction,
    ),
    Rule(
        "outlier-channels",
        "outliers",
        "warning",
        "root mean square at least {ratio} times that of the median channel",
        {"ratio": 6},
        "ours, after the six standard deviations of Bondarenko et al., 2021; systematic ones: Dettmers et al., 2022, "
        "section 4",
        "With one scale per tensor an activation quantiser spends its range on these channels, and norms and "
        "cosines are dominated by them.",
        residual.outlier_channels,
    ),
    Rule(
        "weak-layers",
        "quantisation",
        "warning",
        "output SQNR with this layer alone in int4 at least {decibels} dB below the median over layers, of which there "
        "are {layers} or more",
        {"decibels": 6.02, "layers": 4},
        "closed form: one bit is worth 20 log10 2 = 6.02 dB (Bennett, 1948)",
        "Keep this layer in 8 bits: it loses at least one bit more than the others.",
        rounding.weak_layers,
    ),
    Rule(
        "sparse-at-1-percent",
        "sparsity",
        "opportunity",
        "at least {sparsity} of the feed-forward units can be left out for 1 % of perplexity (PPL-1%)",
        {"sparsity": 0.3},
        "Luo et al., 2024, section 3; the limit is ours",
        "Kernels that skip these units save that share of the down projection and its weights' traffic, "
        "whatever the activation function is. Perplexity is an average over tokens: check the tasks you care about.",
        units.sparse_at_little_cost,
    ),
    Rule(
        "exact-zeros",
        "zeros",
        "opportunity",
        "at least {sparsity} of the outputs of a non-linearity are exactly zero",
        {"sparsity": 0.5},
        "Li et al., 2023 (ReLU networks are sparse without being told to); the limit is ours",
        "Products with these zeros can be skipped without any loss.",
        units.exact_zeros,
    ),
    Rule(
        "lens-settles",
        "lens",
        "opportunity",
        "from some block on at least {agreement} of the top predictions are final, and at least {share} of the "
        "blocks come after it",
        {"agreement": 0.9, "share": 0.15},
        "nostalgebraist, 2020 (logit lens); the limits are ours",
        "The blocks after it mostly sharpen what is decided: candidates for early exit, and the wrong place to look "
        "for where an answer comes from.",
        residual.lens_settles,
    ),
    Rule(
        "redundant-blocks",
        "similarity",
        "opportunity",
        "cosine between the stream before and after a block above {cosine}",
        {"cosine": 0.99},
        "Men et al., 2024, ShortGPT (block influence is 1 - cosine); the limit is ours",
        "Candidates for removal: a block that does not turn the stream changes little. Try it with the lines below "
        "before you believe it.",
        residual.redundant_layers,
    ),
    Rule(
        "few-dimensions",
        "rank",
        "opportunity",
        "at most {share} of the principal components hold 90 % of the variance, with at least {positions} positions "
        "for each of at least {width} dimensions",
        {"share": 0.1, "positions": 4, "width": 16},
        "ours",
        "The activations are close to a small subspace: they can be stored or projected at a fraction of their width.",
        residual.few_dimensions,
    ),
    Rule(
        "int8-is-safe",
        "quantisation",
        "opportunity",
        "at least {agreement} of the top predictions stay when all weights are rounded to int8",
        {"agreement": 0.99},
        "round to nearest with one scale per output channel, as in Dettmers et al., 2022; the limit is ours",
        "A quarter of the memory of float32 weights at next to no cost, without calibration.",
        rounding.int8_is_safe,
    ),
    Rule(
        "prediction-forms",
        "lens",
        "note",
        "the first block from which on at least {agreement} of the top predictions are those of the last",
        {"agreement": 0.5},
        "nostalgebraist, 2020 (logit lens); the limit is ours",
        "Where to look: what is decided here was brought together in this block or shortly before. Patch or ablate "
        "around it first.",
        residual.lens_forms,
    ),
    Rule(
        "first-position",
        "norms",
        "note",
        "mean norm at the first position at least {ratio} times the median norm of the layer",
        {"ratio": 3},
        "ours; Xiao et al., 2024, and Sun et al., 2024, on the part that the first token plays",
        "It drags means, covariances and dictionaries towards itself: leave the first position out when you average "
        "activations, train a sparse autoencoder or build a steering vector.",
        residual.first_position,
    ),
    Rule(
        "attention-sinks",
        "attention",
        "note",
        "a head gives at least {attention} of its attention to keys that get more than 0.3 of a head's on average",
        {"attention": 0.3},
        "Gu et al., 2025, eq. 7 (0.3); Xiao et al., 2024",
        "These heads do nothing where nothing has to be done, and need the sink for it: keep these positions when "
        "you evict a key-value cache or crop the prompt, and leave them out of attention maps.",
        heads.sinks,
    ),
    Rule(
        "even-heads",
        "attention",
        "note",
        "entropy of at least {entropy} of that of even attention",
        {"entropy": 0.95},
        "ours",
        "These heads average over what they see instead of picking from it; where that adds little, they are "
        "candidates for pruning.",
        heads.even_heads,
    ),
    Rule(
        "previous-token-heads",
        "attention",
        "note",
        "at least {attention} of the attention goes to the token before",
        {"attention": 0.5},
        "Elhage et al., 2021 (previous-token heads, the first half of an induction circuit); the limit is ours",
        "They copy a token's content to the next position, where later heads can match on it. Start here when you "
        "look for induction.",
        heads.previous_token_heads,
    ),
    Rule(
        "norm-growth",
        "norms",
        "note",
        "mean norm after the last block over that after the first at least {factor}, or at most its inverse",
        {"factor": 10},
        "Heimersheim and Turner, 2023 (the stream grows exponentially); the limit is ours",
        "A vector of fixed size added early weighs more than one added late: scale steering vectors with the norm "
        "of their layer.",
        residual.norm_growth,
    ),
    Rule(
        "quiet-units",
        "dead",
        "note",
        "the largest magnitude of a unit is below {peak} of the median one of its layer, and not zero everywhere",
        {"peak": 0.01},
        "ours",
        "Units of smooth non-linearities are never exactly zero; these come close to it everywhere and can be "
        "pruned if they are as quiet on your data.",
        units.quiet_units,
    ),
    Rule(
        "always-on-units",
        "saturated",
        "note",
        "the input of a unit's non-linearity is positive at at least {share} of the positions",
        {"share": 0.999},
        "ours",
        "The rectifier or gate of such a unit never closes, so that it selects nothing; without a gate it is close "
        "to a linear unit.",
        units.always_on,
    ),
)
