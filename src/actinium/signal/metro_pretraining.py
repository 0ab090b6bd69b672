"""Pre-training in which a small generator corrupts text and the main model detects and undoes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.signal.token_corruption import mask_tokens

__all__ = ["CorrectiveLM", "MetroPretrainer", "ReplacedTokenDetection"]

POSITIONS = ("masked", "all")
SIDES = ("encoder", "decoder")


class ReplacedTokenDetection(nn.Module):
    """One logit for each token: was it replaced? The weights start at zero, so that every loss starts at ln 2.

    Args:
        d_model: width of the hidden states.

    Source: Gong et al., 2023, section 3 (after Clark et al., 2020).
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        if d_model < 1:
            raise InputError(f"d_model must be at least 1, not {d_model}")
        self.d_model = d_model
        self.out = nn.Linear(d_model, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (batch, pos) of hidden states (batch, pos, d_model)."""
        if hidden.ndim != 3 or hidden.shape[-1] != self.d_model:
            raise InputError(f"expected hidden states (batch, pos, {self.d_model}), got {tuple(hidden.shape)}")
        out: Tensor = self.out(hidden)
        return out.squeeze(-1)

    @staticmethod
    def labels(original: Tensor, noisy: Tensor, mask: Tensor) -> Tensor:
        """(batch, pos) bool: a real token that differs from the original one. A right guess counts as original."""
        return (original != noisy) & mask

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Mean binary cross-entropy over the real tokens, in nats."""
        return functional.binary_cross_entropy_with_logits(logits[mask], labels[mask].to(logits.dtype))


class CorrectiveLM(nn.Module):
    """Loss of a decoder that writes the whole original text: cross-entropy at the positions that count, in nats.

    Args:
        positions: "masked": those that were masked, replaced or not; "all": every real token.
        weighted: weigh each position by the probability, without gradient, that it was replaced.

    Source: Gong et al., 2023, section 3; weights as in the authors' configuration for 8 GPUs.
    """

    def __init__(self, positions: str = "masked", weighted: bool = False) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise InputError(f"positions is one of {', '.join(POSITIONS)}, not {positions!r}")
        self.positions, self.weighted = positions, weighted

    def forward(
        self, logits: Tensor, original: Tensor, masked: Tensor, mask: Tensor, rtd_logits: Tensor | None = None
    ) -> Tensor:
        """The mean loss.

        Args:
            logits: (batch, pos, d_vocab), position i for original token i.
            original: (batch, pos) ids.
            masked: (batch, pos) bool, where tokens were masked.
            mask: (batch, pos) bool, False on padding.
            rtd_logits: (batch, pos), for `weighted`.

        Raises:
            InputError: no position counts, or weights are wanted and there are no logits for them.
        """
        counts = masked & mask if self.positions == "masked" else mask
        if not bool(counts.any()):
            raise InputError("no position counts: nothing is masked")
        each = functional.cross_entropy(logits[counts].float(), original[counts], reduction="none")
        if self.weighted:
            if rtd_logits is None:
                raise InputError("a weighted loss needs the logits of the replaced-token head")
            each = each * rtd_logits.detach()[counts].sigmoid()
        return each.mean()


class MetroPretrainer(nn.Module):
    """Generator, main encoder and decoder, and the head that detects replaced tokens, with their joint loss.

    The generator predicts masked tokens; its samples, without gradient, take their places; the encoder reads the
    result; the head at the encoder tells which tokens were replaced; the decoder, given the original text shifted by
    one, writes it, and its loss counts where the text was masked. Without a generator it is a masked language model.

    Args:
        generator: from ids and mask (batch, pos) to logits (batch, pos, d_vocab), or None. Its dropout must be 0.
        encoder: from ids and mask to hidden states (batch, pos, d_model).
        decoder: from shifted ids, hidden states and mask to logits, or to logits and its own hidden states.
        rtd_head: a ReplacedTokenDetection, or None for none.
        mask_id: the token that stands for what is masked.
        start_id: the token that the decoder starts from, `mask_id` by default as in the authors' code.
        vocabulary: (low, high): ids from low up to below high are the tokens that may be masked and drawn at random.
        mask_rate: share of the tokens that is masked.
        keep, random: of these, the shares left as they are and replaced by a random token.
        masking: "iid", or "span" with spans of `span_length` tokens.
        generator_weight, lm_weight, rtd_weight: of the losses.
        lm_positions, weighted_lm: as in `CorrectiveLM`.
        rtd_side: whose hidden states the head reads, "encoder" or "decoder" (which must then return them).

    Source: Gong et al., 2023, section 3; weights 1, 1 and 50, rates 0.15, 0.1 and 0.1 are those of the authors' code.
    """

    def __init__(
        self,
        generator: nn.Module | None,
        encoder: nn.Module,
        decoder: nn.Module,
        rtd_head: ReplacedTokenDetection | None = None,
        *,
        mask_id: int,
        vocabulary: tuple[int, int],
        start_id: int | None = None,
        mask_rate: float = 0.15,
        keep: float = 0.1,
        random: float = 0.1,
        masking: str = "iid",
        span_length: int = 3,
        generator_weight: float = 1.0,
        lm_weight: float = 1.0,
        rtd_weight: float = 50.0,
        lm_positions: str = "masked",
        weighted_lm: bool = False,
        rtd_side: str = "encoder",
    ) -> None:
        super().__init__()
        if rtd_side not in SIDES:
            raise InputError(f"rtd_side is one of {', '.join(SIDES)}, not {rtd_side!r}")
        if min(generator_weight, lm_weight, rtd_weight) < 0:
            raise InputError("weights of losses are not negative")
        if rtd_weight > 0 and (generator is None or rtd_head is None):
            raise InputError("replaced tokens are detected with a generator and an rtd_head; else set rtd_weight=0")
        self.generator, self.encoder, self.decoder, self.rtd_head = generator, encoder, decoder, rtd_head
        self.lm = CorrectiveLM(lm_positions, weighted_lm)
        self.mask_id, self.start_id = mask_id, mask_id if start_id is None else start_id
        self.masking: dict[str, Any] = {"rate": mask_rate, "keep": keep, "random": random, "vocabulary": vocabulary}
        self.masking |= {"masking": masking, "span_length": span_length}
        self.weights = {"generator": generator_weight, "lm": lm_weight, "rtd": rtd_weight}
        self.rtd_side = rtd_side

    @classmethod
    def from_transformers(
        cls, generator: nn.Module | None, model: nn.Module, *, share_embeddings: bool = True, **settings: Any
    ) -> Self:
        """Around Hugging Face models, which are trained as they are.

        Args:
            generator: a masked language model such as BertForMaskedLM, or None.
            model: an encoder-decoder such as T5ForConditionalGeneration.
            share_embeddings: let the generator's token embeddings, and its output layer, be those of the main model.
            **settings: those of the constructor.

        Raises:
            InputError: the model is no encoder-decoder, vocabularies differ, or shared embeddings differ in width.
        """
        config: Any = getattr(model, "config", None)
        if not getattr(config, "is_encoder_decoder", False):
            raise InputError(f"{type(model).__name__} is no encoder-decoder of transformers")
        words: Any = model.get_input_embeddings()  # type: ignore[operator]
        if generator is not None:
            theirs: Any = generator.get_input_embeddings()  # type: ignore[operator]
            if theirs.num_embeddings != words.num_embeddings:
                raise InputError(
                    f"the generator knows {theirs.num_embeddings} tokens and the main model {words.num_embeddings}"
                )
            if share_embeddings:
                if theirs.embedding_dim != words.embedding_dim:
                    raise InputError(
                        f"embeddings of width {theirs.embedding_dim} and {words.embedding_dim} cannot be shared"
                    )
                theirs.weight = words.weight
                generator.get_output_embeddings().weight = words.weight  # type: ignore[operator]
        head = None if settings.get("rtd_weight", 50.0) == 0 else ReplacedTokenDetection(words.embedding_dim)
        with_hidden = settings.get("rtd_side") == "decoder"
        read = None if generator is None else _Generator(generator)
        return cls(read, _Encoder(model), _Decoder(model, with_hidden), head, **settings)

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, source: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Losses and measures of one batch.

        Args:
            tokens: ids (batch, pos).
            mask: (batch, pos) bool, False on padding; all real by default.
            source: of the random numbers for masks and samples.

        Returns:
            `loss`, the weighted sum; `generator_loss`, `lm_loss`, `rtd_loss` in nats, where there are such; without
            gradient: `mask_ratio` and `replace_ratio` (of the real tokens), `generator_accuracy`, `rtd_recall` (of the
            replaced tokens), `rtd_specificity` (of the others), `lm_accuracy_replaced`, `lm_accuracy_unreplaced`; NaN
            where there is nothing to count.

        Raises:
            InputError: shapes do not fit, nothing or everything is masked, the generator has dropout or another
                vocabulary.
        """
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        masked_text, masked = mask_tokens(tokens, mask, self.mask_id, source=source, **self.masking)
        out: dict[str, Tensor] = {}
        noisy, vocabulary = masked_text, None
        if self.generator is not None:
            _refuse_dropout(self.generator)
            guesses: Tensor = self.generator(masked_text, mask)
            vocabulary = guesses.shape[-1]
            out["generator_loss"] = functional.cross_entropy(guesses[masked].float(), tokens[masked])
            noisy = _sampled(masked_text, guesses, masked, source)
            out["generator_accuracy"] = (guesses[masked].argmax(-1) == tokens[masked]).double().mean()
        hidden: Tensor = self.encoder(noisy, mask)
        shifted = torch.cat([torch.full_like(tokens[:, :1], self.start_id), tokens[:, :-1]], 1)
        written = self.decoder(shifted, hidden, mask)
        logits, decoded = written if isinstance(written, tuple) else (written, None)
        if vocabulary is not None and vocabulary != logits.shape[-1]:
            raise InputError(f"the generator knows {vocabulary} tokens and the decoder {logits.shape[-1]}")
        detected = self._detected(hidden, decoded)
        replaced = ReplacedTokenDetection.labels(tokens, noisy, mask)
        if detected is not None:
            out["rtd_loss"] = ReplacedTokenDetection.loss(detected, replaced, mask)
            said = detected.detach() >= 0
            out["rtd_recall"] = _share(said, replaced)
            out["rtd_specificity"] = _share(~said, mask & ~replaced)
        out["lm_loss"] = self.lm(logits, tokens, masked, mask, detected)
        right = logits.detach().argmax(-1) == tokens
        out["lm_accuracy_replaced"] = _share(right, replaced)
        out["lm_accuracy_unreplaced"] = _share(right, mask & ~replaced)
        out["mask_ratio"], out["replace_ratio"] = masked[mask].double().mean(), replaced[mask].double().mean()
        out["loss"] = torch.stack([w * out[f"{k}_loss"] for k, w in self.weights.items() if f"{k}_loss" in out]).sum()
        return out

    def _detected(self, hidden: Tensor, decoded: Tensor | None) -> Tensor | None:
        if self.rtd_head is None or self.generator is None:
            return None
        if self.rtd_side == "encoder":
            return self.rtd_head(hidden)  # type: ignore[no-any-return]
        if decoded is None:
            raise InputError("rtd_side='decoder' needs a decoder that returns logits and hidden states")
        return self.rtd_head(decoded)  # type: ignore[no-any-return]


def _sampled(text: Tensor, logits: Tensor, masked: Tensor, source: torch.Generator | None) -> Tensor:
    """The text with samples of the generator at the masked places, without gradient."""
    with torch.no_grad():
        p = logits[masked].float().softmax(-1).cpu()
        drawn = torch.multinomial(p, 1, generator=source)[:, 0]
    return text.masked_scatter(masked, drawn.to(text))


def _share(of: Tensor, among: Tensor) -> Tensor:
    """Share of the True among some entries, NaN among none."""
    return of[among].double().mean()


def _refuse_dropout(generator: nn.Module) -> None:
    for name, part in generator.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.training and part.p > 0:
            raise InputError(f"the generator samples with dropout in {name or 'itself'}; set its dropout to 0")


class _Generator(nn.Module):
    """A masked language model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask.long()).logits  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    """The encoder of an encoder-decoder of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        encoder: Callable[[], nn.Module] = model.get_encoder  # type: ignore[assignment]
        self.model = encoder()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    """The decoder of one, with its output layer."""

    def __init__(self, model: nn.Module, with_hidden: bool) -> None:
        super().__init__()
        self.model, self.with_hidden = model, with_hidden

    def forward(self, shifted: Tensor, hidden: Tensor, mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = self.model(
            encoder_outputs=(hidden,),
            attention_mask=mask.long(),
            decoder_input_ids=shifted,
            decoder_attention_mask=mask.long(),
            output_hidden_states=self.with_hidden,
            use_cache=False,
        )
        return (out.logits, out.decoder_hidden_states[-1]) if self.with_hidden else out.logits
