"""What the directions mean: dictionaries, factorisations and concepts, one file per method."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "dictionaries.architectures": [
            "BatchTopKSAE",
            "GatedSAE",
            "JumpReLUSAE",
            "MatryoshkaSAE",
            "ReLUSAE",
            "TopKSAE",
        ],
        "dictionaries.code": ["Code"],
        "dictionaries.crosscoder": ["Crosscoder"],
        "dictionaries.dictionary": ["Dictionary", "DictionaryOutput"],
        "dictionaries.multi_layer": ["LatentLayerDistribution", "MultiLayerSAE"],
        "dictionaries.transcoder": ["SkipTranscoder", "Transcoder"],
        "evaluation": ["evaluate", "evaluate_rows"],
        "splicing": ["splice"],
        "training.config": ["TrainConfig"],
        "training.trainer": ["Interrupted", "train"],
    },
)
