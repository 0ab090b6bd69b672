"""A pair of encoders for rendered shapes and their captions: words, tokenizer, the untrained pair, zero-shot use.

    model = ac.load("world:shapes-clip")                        # a CLIPModel with its tokenizer
    held = ac.world.heldout_images("shapes-clip", 200)
    contrastive.zero_shot(model.module, held.images)            # classes (200,), numbers as in held.classes
    bank = contrastive.text_bank(model.module, ["colour"])      # (4, d) unit vectors: red, green, blue, yellow

A caption says colour, texture, shape and position, "a red stripes circle at the top left", or leaves some of the first
two and the last out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

from actinium.core.errors import InputError
from actinium.world import shapes
from actinium.world.image_models import ViTSize, waves
from actinium.world.labelled import value_index

__all__ = [
    "SAID",
    "PairSize",
    "caption",
    "image_embeddings",
    "make_pair",
    "make_tokenizer",
    "prompts",
    "text_bank",
    "text_embeddings",
    "zero_shot",
]

SAID = ("colour", "texture", "shape", "position")
"""Concepts that captions speak of."""
PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
WORDS = ("a", "at", "the", "top", "bottom", "left", "right", *(v for c in SAID[:3] for v in shapes.CONCEPTS[c]))
CONTEXT = 10
"""Tokens of the longest caption, with `<bos>` and `<eos>`."""
TEMPERATURE = 0.07
"""Divides the cosines at the start of training, as in Radford et al. 2021."""


@dataclass(frozen=True)
class PairSize:
    """Sizes of a pair of encoders.

    Args:
        vision: of the image encoder.
        d_model, n_layers, n_heads, d_mlp: of the text encoder's blocks.
        d_shared: dimensions of the space in which images and texts are compared.
    """

    vision: ViTSize
    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    d_shared: int


def caption(concepts: Mapping[str, str | int]) -> str:
    """The caption that says the given values, the shape among them.

    Args:
        concepts: values (names or numbers) of some of `SAID`.

    Raises:
        UnknownNameError: there is no such concept or value.
        InputError: there is no shape, or a concept of which captions do not speak.
    """
    if "shape" not in concepts or not set(concepts) <= set(SAID):
        raise InputError(f"a caption says the shape and some of {', '.join(SAID)}, not {', '.join(concepts)}")
    said = {c: shapes.CONCEPTS[c][value_index(shapes.CONCEPTS, c, v)] for c, v in concepts.items()}
    words = ["a", *(said[c] for c in SAID[:3] if c in said)]
    return " ".join([*words, "at", "the", said["position"]] if "position" in said else words)


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of captions: a word is a token, `<bos>` before and `<eos>` after each text."""
    # A CLIP whose end of text is token 2 reads the text where its highest id stands, as in OpenAI's vocabulary.
    ids = {token: i for i, token in enumerate([PAD, UNK, BOS, EOS, *WORDS])}
    inner = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, ids[token]) for token in (BOS, EOS)]
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A $B {EOS}", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_pair(size: PairSize, seed: int) -> CLIPModel:
    """An untrained transformers' `CLIPModel`, its weights drawn from a seed.

    Raises:
        InputError: patches do not fill the image, heads do not fill a width, or the images' width is no multiple of 4.
    """
    vision = size.vision
    if shapes.SIZE % vision.patch or vision.d_model % 4:
        raise InputError(f"patches must fill {shapes.SIZE} pixels, and 4 divide the width: {vision}")
    if vision.d_model % vision.n_heads or size.d_model % size.n_heads:
        raise InputError(f"heads must fill the widths: {size}")
    with torch.random.fork_rng(devices=[]):
        module = CLIPModel(_config(size))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2:
                # What a block adds starts small beside the stream.
                share = 0.5 if name.endswith(("out_proj.weight", "fc2.weight")) else 1.0
                # An embedding's rows are vectors of the stream: about 1 in each direction.
                fan = 1 if "embedding" in name else parameter.shape[1]
                parameter.normal_(0, share * fan**-0.5, generator=generator)
        embeddings = module.vision_model.embeddings
        patches: Tensor = embeddings.patch_embedding.weight
        patches.normal_(0, 5 * patches[0].numel() ** -0.5, generator=generator)
        embeddings.class_embedding.normal_(0, 0.02, generator=generator)
        embeddings.position_embedding.weight.zero_()
        # Images lie around 0.4; there is no bias to take it off, so the positions do.
        places = waves(shapes.SIZE // vision.patch, vision.d_model) - 0.4 * patches.sum((1, 2, 3))
        embeddings.position_embedding.weight[1:] = places
        module.logit_scale.fill_(math.log(1 / TEMPERATURE))
    return module


def _config(size: PairSize) -> CLIPConfig:
    vision, tokenizer = size.vision, make_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.d_model,
        intermediate_size=size.d_mlp,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        max_position_embeddings=CONTEXT,
        hidden_act="gelu",
        projection_dim=size.d_shared,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(EOS),
    )
    image = CLIPVisionConfig(
        hidden_size=vision.d_model,
        intermediate_size=vision.d_mlp,
        num_hidden_layers=vision.n_layers,
        num_attention_heads=vision.n_heads,
        image_size=shapes.SIZE,
        patch_size=vision.patch,
        hidden_act="gelu",
        projection_dim=size.d_shared,
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=image.to_dict(), projection_dim=size.d_shared)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def image_embeddings(module: Any, images: Tensor) -> Tensor:
    """Unit vectors (n, d) of images (n, 3, height, width), with their gradient."""
    pooled = module.vision_model(pixel_values=images).pooler_output
    return _unit(module.visual_projection(pooled))


def text_embeddings(module: Any, texts: Sequence[str], tokenizer: Any = None) -> Tensor:
    """Unit vectors (n, d) of texts, with their gradient.

    Args:
        module: a `CLIPModel`.
        texts: the texts.
        tokenizer: of the module; by default that of the captions here.

    Raises:
        InputError: there is no text.
    """
    if isinstance(texts, str) or not texts:
        raise InputError("pass a list of texts, one or more")
    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    ids = tokenizer(list(texts), return_tensors="pt", padding=True)
    device = module.text_projection.weight.device
    pooled = module.text_model(
        input_ids=ids["input_ids"].to(device), attention_mask=ids["attention_mask"].to(device)
    ).pooler_output
    return _unit(module.text_projection(pooled))


def prompts(rule: Sequence[str] = shapes.RULE) -> list[list[str]]:
    """For each class of a rule, the captions that say it with every combination of what else captions speak of.

    Args:
        rule: some of `SAID`; each combination of their values is a class, numbered as by `shapes.render`.

    Raises:
        InputError, UnknownNameError: there is no such rule, or captions do not speak of it.
    """
    shapes.classes(rule)
    if isinstance(rule, Mapping) or not set(rule) <= set(SAID):
        raise InputError(f"classes are combinations of {', '.join(SAID)}, not of {', '.join(rule)}")
    others = [c for c in SAID if c not in rule]

    def values(concepts: Sequence[str]) -> list[dict[str, str | int]]:
        drawn = product(*(shapes.CONCEPTS[c] for c in concepts))
        return [dict(zip(concepts, held, strict=True)) for held in drawn]

    return [[caption(wanted | rest) for rest in values(others)] for wanted in values(rule)]


def text_bank(module: Any, rule: Sequence[str] = shapes.RULE) -> Tensor:
    """Unit vectors (class, d) of the classes of a rule: the mean over each one's prompts, of unit vectors.

    Args:
        module: a `CLIPModel` of captions.
        rule: see `prompts`.

    Raises:
        InputError, UnknownNameError: see `prompts`.
    """
    with torch.no_grad():
        return torch.stack([_unit(text_embeddings(module, texts).mean(0)) for texts in prompts(rule)])


def zero_shot(module: Any, images: Tensor, rule: Sequence[str] = shapes.RULE, batch_size: int = 256) -> Tensor:
    """The class (n,) of a rule whose text is nearest to each image.

    Args:
        module: a `CLIPModel` of captions.
        images: (n, 3, 32, 32) in 0..1.
        rule: see `prompts`.
        batch_size: images at a time.

    Raises:
        InputError, UnknownNameError: see `prompts`.
    """
    bank = text_bank(module, rule)
    with torch.no_grad():
        return torch.cat([(image_embeddings(module, part) @ bank.T).argmax(1) for part in images.split(batch_size)])
