"""Sparse dictionaries: what all architectures share. An encoder, a rule, a decoder, and the files they are kept in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.core.estimator import Estimator
from actinium.core.fitted import read_fitted, write_fitted
from actinium.features.dictionaries import normalisation
from actinium.features.dictionaries.code import Code
from actinium.features.dictionaries.output import DictionaryOutput, error_of
from actinium.features.dictionaries.rules import Rule
from actinium.features.dictionaries.sparse import decode, encode_entries

__all__ = ["Dictionary"]

KIND = "dictionary"
CHUNK = 256
"""Rows that are gone over at a time, so that they stay in the processor's cache between two looks at them."""
BIASES = ("zeros", "mean", "geometric_median")
NORMS = ("unit", "free", "ignored")
RECONSTRUCTIONS = ("sse", "fvu", "mse")


class Dictionary(Estimator, nn.Module):
    """f = rule((x - b_dec) W_enc + b_enc), xhat = f W_dec + b_dec; the base of all architectures.

    Parameters have the field's names and shapes: `W_enc` (d_in, d_sae), `b_enc` (d_sae,), `W_dec` (d_sae, d_out),
    `b_dec` (d_out,). They are made by `build`, which `fit` calls.

    Args:
        d_sae: number of latents.
        normalize: "none"; "mean_norm" (times sqrt(d) / mean norm) or "mean_square" (root of the mean square norm 1) by
            one number measured before training; "norm" (each row to sqrt(d)) or "layer_norm" (each row's mean and
            standard deviation), undone on the reconstruction.
        decoder_norm: "unit" (constrained), "free" (penalties and ranks are weighted by norms), or "ignored" (neither).
        b_dec_init: "zeros", "mean" or "geometric_median" of a sample.
        apply_b_dec: subtract the decoder's bias from the input.
        reconstruction: "sse" (summed over d), "mse" or "fvu".
        init_norm: norm of decoder rows at the start.
        seed: of the weights.

    Attributes:
        rule: the activation rule.
        d_in, d_out: widths of input and output.
        rows_: rows it was trained on.
    """

    fitted = "d_in"
    autoencodes = True
    # Of the auxiliary loss, in architectures that have one.
    aux_k: int | None = None
    aux_alpha: float = 0.0
    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    scale: Tensor

    def __init__(
        self,
        d_sae: int,
        *,
        normalize: str = "none",
        decoder_norm: str = "unit",
        b_dec_init: str = "zeros",
        apply_b_dec: bool = True,
        reconstruction: str = "sse",
        init_norm: float = 1.0,
        seed: int = 0,
    ) -> None:
        nn.Module.__init__(self)
        self.d_sae, self.normalize, self.decoder_norm = d_sae, normalize, decoder_norm
        self.b_dec_init, self.apply_b_dec, self.reconstruction = b_dec_init, apply_b_dec, reconstruction
        self.init_norm, self.seed = init_norm, seed
        self.about: dict[str, Any] = {}
        """What is known of where it belongs, such as {"model": ..., "site": ...}."""
        self.rows_ = 0

    def make_rule(self) -> Rule:
        """The activation rule of these settings."""
        raise InputError(f"{type(self).__name__} has no rule; use TopKSAE, JumpReLUSAE, ...")

    def build(self, d_in: int, d_out: int | None = None) -> Self:
        """Make parameters, drawn from the seed.

        Args:
            d_in: width of the input.
            d_out: width of the output, that of the input by default.

        Raises:
            InputError: a setting is out of range.
            UnknownNameError: there is no such choice.
        """
        self._check()
        d_out = d_in if d_out is None else d_out
        if d_in < 1 or d_out < 1:
            raise InputError(f"widths must be 1 or more, not {d_in} and {d_out}")
        self.d_in, self.d_out = d_in, d_out
        random = torch.Generator().manual_seed(self.seed)
        directions = torch.randn(self.d_sae, d_out, generator=random)
        directions = directions / directions.norm(dim=1, keepdim=True) * self.init_norm
        self.W_dec = nn.Parameter(directions)
        # Kept transposed: a latent's weights are contiguous, and so are sums over active latents.
        self.W_enc = nn.Parameter(self._first_encoder(directions, random).contiguous().T)
        self.rule = self.make_rule()
        self.rule.build(self.d_sae)
        if self.aux_k is not None and not self.rule.auxiliary:
            raise InputError(f"{type(self.rule).__name__} latents have no auxiliary loss: leave aux_k out")
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae)) if self.rule.encoder_bias else None
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        if self.apply_b_dec and not self.autoencodes:
            raise InputError("the decoder's bias cannot be taken from another input: set apply_b_dec=False")
        self.register_buffer("scale", torch.ones(self.scale_shape()))
        return self

    def measure(self, x: Tensor, y: Tensor | None = None) -> None:
        """Take the constant of the normalisation and the decoder's bias, if they are measured, from rows (n, d_in).

        Args:
            x: rows that are encoded.
            y: (n, d_out) what is reconstructed, x by default.
        """
        self.measure_scale(x)
        if self.b_dec_init != "zeros":
            rows = normalisation.normalised(x, self.normalize, self.scale)[0] if y is None else y
            centre = normalisation.geometric_median(rows) if self.b_dec_init == "geometric_median" else rows.mean(0)
            self.b_dec.data.copy_(centre)

    def arrange(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The input and, for a transcoder, the output, from rows (n, width) of each place.

        Raises:
            InputError: another number of places is wanted, or other widths.
        """
        wanted = 1 if self.autoencodes else 2
        if len(parts) != wanted:
            places = f"{wanted} place{'s' * (wanted > 1)}"
            raise InputError(f"{type(self).__name__} trains on {places}, not {len(parts)}")
        return parts[0], None if self.autoencodes else parts[1]

    def _first_encoder(self, directions: Tensor, random: torch.Generator) -> Tensor:
        """(d_sae, d_in): the decoder, or where widths differ directions of its own."""
        if self.d_in == self.d_out:
            return directions.clone()
        own = torch.randn(self.d_sae, self.d_in, generator=random)
        return own / own.norm(dim=1, keepdim=True)

    def scale_shape(self) -> tuple[int, ...]:
        """Shape of the constant by which inputs are multiplied: one number."""
        return ()

    def measure_scale(self, sample: Tensor) -> None:
        """Take the constant of the normalisation, if it has one, from rows (n, d_in)."""
        if self.normalize in normalisation.CONSTANT:
            self.scale.fill_(normalisation.constant_scale(sample, self.normalize))

    def _check(self) -> None:
        if (
            self.d_sae < 1
            or not self.init_norm > 0
            or self.aux_alpha < 0
            or (self.aux_k is not None and self.aux_k < 1)
        ):
            raise InputError(f"d_sae and aux_k must be 1 or more, init_norm above 0, aux_alpha 0 or more: {self!r}")
        for what, value, known in (
            ("normalisation", self.normalize, normalisation.NORMALISATIONS),
            ("decoder norm", self.decoder_norm, NORMS),
            ("start of b_dec", self.b_dec_init, BIASES),
            ("reconstruction loss", self.reconstruction, RECONSTRUCTIONS),
        ):
            if value not in known:
                raise UnknownNameError(unknown(what, value, known))

    # What it computes

    def weights_of_latents(self) -> Tensor:
        """(d_sae,) decoder norms by which penalties and ranks are weighted; 1 where norms are constrained."""
        return self.W_dec.norm(dim=1) if self.decoder_norm == "free" else self.W_dec.new_ones(())

    def pre(self, x: Tensor) -> Tensor:
        """(n, d_sae) pre-activations of normalised rows."""
        return torch.addmm(self._bias(), self._shifted(x), self.W_enc).to(x.dtype)

    def _bias(self) -> Tensor:
        return self.W_enc.new_zeros(self.d_sae) if self.b_enc is None else self.b_enc

    def _shifted(self, x: Tensor) -> Tensor:
        return x - self.b_dec if self.apply_b_dec else x

    def active(self, x: Tensor) -> tuple[Code | Tensor, Code | Tensor, Tensor]:
        """Latents of normalised rows (n, d_in), the pre-activations of the same entries, and the weights of latents.

        Sparse where few are active: then gradients reach only what was active.
        """
        norms = self.weights_of_latents()
        bias = self._bias()
        pre = self.pre(x)
        with torch.no_grad():
            found = self.rule.select(pre.detach(), norms.detach())
        if found is None:
            return self.rule.dense(pre, norms), pre, norms
        del pre
        entries = found
        if torch.is_grad_enabled():
            # Where x itself needs no gradient, that of the decoder's bias is a sum over latents.
            apart = self.b_dec if self.apply_b_dec and not x.requires_grad else None
            shifted = self._shifted(x) if apart is None else x - apart.detach()
            entries = encode_entries(shifted, self.W_enc, bias, found, apart)
        return entries.with_values(self.rule.activate(entries.values, entries.latents, norms)), entries, norms

    def reconstruct(self, latents: Code | Tensor) -> Tensor:
        """(n, d_out) from latents, still normalised."""
        if isinstance(latents, Code):
            return decode(latents, self.W_dec) + self.b_dec
        return (latents @ self.W_dec).to(latents.dtype) + self.b_dec

    def forward(self, x: Tensor) -> DictionaryOutput:
        """Latents and reconstruction of activations (..., d_in).

        Raises:
            InputError: the width is another one, or there are no parameters yet.
        """
        rows, shape = self._rows(x)
        normal, undo = normalisation.normalised(rows, self.normalize, self.scale)
        latents, _, _ = self.active(normal)
        xhat = self.reconstruct(latents)
        return DictionaryOutput((undo(xhat) if self.autoencodes else xhat).view(*shape, self.d_out), latents, shape)

    def encode(self, x: Tensor) -> Tensor:
        """Latents (..., d_sae) of activations (..., d_in).

        Raises:
            InputError: as `forward`.
        """
        return self.forward_latents(x).f

    def forward_latents(self, x: Tensor) -> DictionaryOutput:
        """Latents alone, as `forward` gives them, with an empty reconstruction."""
        rows, shape = self._rows(x)
        normal, _ = normalisation.normalised(rows, self.normalize, self.scale)
        latents, _, _ = self.active(normal)
        return DictionaryOutput(rows.new_zeros(*shape, 0), latents, shape)

    def decode(self, f: Tensor) -> Tensor:
        """Reconstruction (..., d_out) from latents (..., d_sae).

        Raises:
            InputError: normalisation by the size of each row cannot be undone without the row; the width is another.
        """
        self.check_fitted()
        if f.shape[-1] != self.d_sae:
            raise InputError(f"expected {self.d_sae} latents, got {f.shape[-1]}")
        if self.autoencodes and self.normalize in ("norm", "layer_norm"):
            raise InputError(f"{self.normalize} depends on the row: use the model's forward")
        xhat = f @ self.W_dec + self.b_dec
        return xhat / self.scale if self.autoencodes and self.normalize in normalisation.CONSTANT else xhat

    def _rows(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        self.check_fitted()
        if x.shape[-1] != self.d_in:
            raise InputError(f"this dictionary takes activations of width {self.d_in}, not {x.shape[-1]}")
        return x.reshape(-1, self.d_in).to(self.W_dec.dtype), tuple(x.shape[:-1])

    # What it is trained by

    def loss(
        self, x: Tensor, y: Tensor | None = None, dead: Tensor | None = None, warm: Tensor | float = 1.0
    ) -> tuple[dict[str, Tensor], Code | Tensor]:
        """The parts of the loss on rows, whose sum is minimised, and the latents.

        Args:
            x: (n, d_in).
            y: (n, d_out) what is reconstructed, x by default.
            dead: (d_sae,) bool, latents that the auxiliary loss revives.
            warm: factor of the sparsity penalty, from 0 to 1 during its warm-up.
        """
        normal, _ = normalisation.normalised(x, self.normalize, self.scale)
        target = normal if y is None else y
        latents, pre, norms = self.active(normal)
        xhat = self.reconstruct(latents)
        parts = {"reconstruction": self.reconstruction_loss(xhat, target, latents)}
        values, places = _entries(latents)
        for name, value in self.rule.penalties(_entries(pre)[0], values, places, norms, len(x)).items():
            parts[name] = warm * value
        parts |= self.auxiliary(normal, target, xhat, latents, pre, dead)
        return parts, latents

    def reconstruction_loss(self, xhat: Tensor, target: Tensor, latents: Code | Tensor) -> Tensor:
        """Mean over rows of the squared error summed over d ("sse"), its mean over d ("mse"), or its share ("fvu")."""
        return error_of(xhat, target, self.reconstruction)

    def auxiliary(
        self, x: Tensor, target: Tensor, xhat: Tensor, latents: Code | Tensor, pre: Code | Tensor, dead: Tensor | None
    ) -> dict[str, Tensor]:
        """The loss that revives dead latents: they reconstruct what the others left.

        Source: Gao et al., 2024, appendix A.2; decoded without a bias, the error's gradient held.
        """
        if not self.rule.auxiliary or dead is None or not self.aux_alpha or not bool(dead.any()):
            return {}
        chosen = dead.nonzero().flatten()
        k = min(max(1, self.d_out // 2) if self.aux_k is None else self.aux_k, len(chosen))
        columns = self.W_enc.T[chosen]
        values, places = (self._shifted(x) @ columns.T + self._bias()[chosen]).topk(k, dim=1, sorted=False)
        revived = decode(Code.from_top(values.relu(), places, len(chosen)), self.W_dec[chosen])
        error = (target - xhat).detach()
        spread = (error - error.mean(0)).square().mean()
        lost = (error - revived).square().mean() / spread.clamp_min(1e-12)
        return {"auxiliary": self.aux_alpha * lost}

    def before_step(self) -> None:
        """After the backward pass: take out of the decoder's gradient what would change constrained norms."""
        grad = self.W_dec.grad
        if self.decoder_norm != "unit" or grad is None:
            return
        with torch.no_grad():
            for g, unit in zip(grad.split(CHUNK), self.W_dec.split(CHUNK), strict=True):
                g.sub_((g * unit).sum(1, keepdim=True) * unit)

    def after_step(self) -> None:
        """Give constrained decoder rows unit norm again, and keep thresholds in their range."""
        with torch.no_grad():
            if self.decoder_norm == "unit":
                for rows in self.W_dec.split(CHUNK):
                    rows.div_(rows.norm(dim=1, keepdim=True).clamp_min(1e-8))
            clamp: Callable[[], None] | None = getattr(self.rule, "clamp", None)
            if clamp is not None:
                clamp()

    # Its other forms

    def fold_decoder_norm(self) -> Self:
        """Decoder rows of unit norm, latents larger instead: the reconstruction and what is active stay.

        Raises:
            InputError: what is active depends on norms that were not counted: ranks of TopK, BatchTopK's threshold.
        """
        self.check_fitted()
        with torch.no_grad():
            norms = self.W_dec.norm(dim=1).clamp_min(1e-12)
            if self.decoder_norm != "free":
                self.rule.check_equal(norms)
            self.W_dec.div_(norms[:, None])
            self.W_enc.mul_(norms)
            if self.b_enc is not None:
                self.b_enc.mul_(norms)
            self.rule.fold(norms)
        self.decoder_norm = "unit"
        return self

    def fold_input_scale(self) -> Self:
        """Take the constant by which inputs are multiplied into the weights; rows are then encoded as they are.

        Latents stay as they are, the encoder and what leaves the decoder are scaled.
        """
        self.check_fitted()
        if self.normalize in normalisation.CONSTANT:
            with torch.no_grad():
                self.W_enc.mul_(self.scale.reshape(-1, 1))
                if self.autoencodes:
                    self.W_dec.div_(self.scale)
                    self.b_dec.div_(self.scale)
                    if self.decoder_norm == "free":
                        self.rule.rescale(1 / self.scale.flatten()[0])
                self.scale.fill_(1.0)
            self.normalize = "none"
            if self.autoencodes and self.decoder_norm == "unit":
                # Rows have another norm now: a constraint would undo the scale, and weights would change ranks.
                self.decoder_norm = "ignored"
        return self

    # Fitting and files

    def fit(self, data: Any, *, config: Any = None, sites: Any = None, progress: bool = False, **options: Any) -> Self:
        """Train on activations.

        Args:
            data: rows (n, d), `store[site]`, a `Store`, a `Model` with `options["texts"]`, a Recording, or for a
                transcoder a pair of these.
            config: a `TrainConfig`; its fields can also be given by name.
            sites: of a store, model or recording.
            progress: show a progress bar.

        Raises:
            InputError: rows are constant, not finite, or of another width; a setting is out of range.

        Source: of the loop Bricken et al., 2023; Gao et al., 2024.
        """
        from actinium.features.training.trainer import train

        train([self], data, config=config, sites=sites, progress=progress, **options)
        return self

    def transform(self, x: Any) -> Tensor:
        """Latents of rows, without gradients (scikit-learn's name for `encode`)."""
        with torch.no_grad():
            return self.encode(torch.as_tensor(x, dtype=self.W_dec.dtype, device=self.W_dec.device))

    def score(self, x: Any) -> float:
        """Explained variance of rows (n, d_in)."""
        with torch.no_grad():
            rows = torch.as_tensor(x, dtype=self.W_dec.dtype, device=self.W_dec.device)
            error = (rows - self(rows).xhat).double().square().sum()
            return 1.0 - float(error / (rows - rows.mean(0)).double().square().sum())

    def save(self, path: str | Path) -> Path:
        """Write settings and parameters to one safetensors file.

        Raises:
            InputError: there are no parameters yet, or settings cannot be written.
        """
        self.check_fitted()
        more = {"architecture": type(self).__name__, "d_in": self.d_in, "d_out": self.d_out, "rows": self.rows_}
        return write_fitted(path, KIND, self.state_dict(), self.get_params(), about=self.about, **more)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; from `Dictionary` any architecture, from a subclass only its own.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
        """
        about, tensors = read_fitted(path, KIND)
        try:
            architecture = _architectures()[about["architecture"]]
            if not issubclass(architecture, cls):
                raise LoadError(f"{path} holds a {about['architecture']}, not a {cls.__name__}")
            made = architecture(**about["settings"]).build(about["d_in"], about["d_out"])
            made.load_state_dict(tensors)
            made.rows_, made.about = int(about["rows"]), dict(about["about"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise LoadError(f"{path} is no {KIND} that this version reads: {error}") from None
        made.eval()
        return made


def _entries(latents: Code | Tensor) -> tuple[Tensor, Tensor | None]:
    return (latents.values, latents.latents) if isinstance(latents, Code) else (latents, None)


@functools.cache
def _architectures() -> Mapping[str, type[Dictionary]]:
    """Every architecture by the name of its class."""
    from actinium.features.dictionaries import architectures, crosscoder, multi_layer, transcoder

    modules = (architectures, transcoder, crosscoder, multi_layer)
    found = [getattr(module, name) for module in modules for name in module.__all__]
    return {c.__name__: c for c in found if isinstance(c, type) and issubclass(c, Dictionary)}
