"""How good a dictionary is: sparsity, reconstruction, and what a model loses that has to do with it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.edits import Mean, Zero
from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.splicing import flattened, splice

__all__ = ["Reconstruction", "evaluate", "evaluate_rows"]

RARE = (1e-5, 1e-6)
DENSE = 0.1
"""Share of tokens above which a latent counts as dense."""


class Reconstruction:
    """Sums over rows from which all measures of reconstruction follow, whatever the batches.

    Args:
        dictionary: whose latents are counted.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        d, m = dictionary.d_out, dictionary.d_sae
        self.rows = 0
        self.total = torch.zeros(d, dtype=torch.float64)
        self.error_total = torch.zeros(d, dtype=torch.float64)
        self.fired = torch.zeros(m, dtype=torch.long)
        self.sums = dict.fromkeys(("squares", "error", "l1", "cosine", "ratio", "made", "crossed"), 0.0)

    def update(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Add rows (n, d_in), and for a transcoder the outputs (n, d_out); returns the reconstruction."""
        with torch.no_grad():
            out = self.dictionary(x)
            target = (x if y is None else y).double().cpu()
            made, code = out.xhat.double().cpu(), out.code
        error = target - made
        size, made_size = target.norm(dim=1), made.norm(dim=1)
        self.rows += len(x)
        self.total += target.sum(0)
        self.error_total += error.sum(0)
        self.fired += torch.bincount(code.latents, minlength=self.dictionary.d_sae).cpu()
        for name, value in (
            ("squares", target.square().sum()),
            ("error", error.square().sum()),
            ("l1", code.values.double().sum().cpu()),
            ("cosine", ((target * made).sum(1) / (size * made_size).clamp_min(1e-12)).sum()),
            ("ratio", (made_size / size.clamp_min(1e-12)).sum()),
            ("made", made.square().sum()),
            ("crossed", (target * made).sum()),
        ):
            self.sums[name] += float(value)
        return out.xhat

    @property
    def density(self) -> np.ndarray:
        """(d_sae,) share of rows at which each latent is active."""
        return (self.fired.double() / max(1, self.rows)).numpy()

    def numbers(self) -> dict[str, float]:
        """All measures by name, means over rows.

        `explained_variance` is 1 - sum ||x - xhat||^2 / sum ||x - mean||^2 with the mean of all rows;
        `variance_explained` leaves the error's own mean out, as dictionary_learning does. `bias` is
        E||xhat||^2 / E[x . xhat], below 1 where reconstructions are too small. `dead` is the share never active here.
        """
        n, s = self.rows, self.sums
        if not n:
            raise InputError("there are no rows to evaluate")
        variance = s["squares"] - float(self.total.square().sum()) / n
        spread = s["error"] - float(self.error_total.square().sum()) / n
        density = self.density
        return {
            "l0": float(self.fired.sum()) / n,
            "l1": s["l1"] / n,
            "mse": s["error"] / n,
            "explained_variance": 1 - s["error"] / variance if variance > 0 else float("nan"),
            "variance_explained": 1 - spread / variance if variance > 0 else float("nan"),
            "cosine": s["cosine"] / n,
            "l2_ratio": s["ratio"] / n,
            "bias": s["made"] / s["crossed"] if s["crossed"] else float("nan"),
            "dead": float((density == 0).mean()),
            **{f"below_{rare:.0e}".replace("e-0", "e-"): float((density < rare).mean()) for rare in RARE},
            "dense": float((density > DENSE).mean()),
            "encoder_decoder_cosine": self._aligned(),
            "rows": float(n),
        }

    def _aligned(self) -> float:
        """Mean cosine of encoder and decoder directions; NaN where they are in different spaces."""
        if self.dictionary.d_in != self.dictionary.d_out:
            return float("nan")
        cosine = torch.nn.functional.cosine_similarity(self.dictionary.W_enc.T, self.dictionary.W_dec, dim=1)
        return float(cosine.detach().mean())


def evaluate_rows(dictionary: Dictionary, x: Any, y: Any = None, batch_size: int = 4096) -> Result:
    """Measures of a dictionary on rows.

    Args:
        dictionary: any architecture.
        x: (n, d_in) tensor, array, or activations of a store.
        y: (n, d_out) for a transcoder.
        batch_size: rows at a time.

    Returns:
        Result with the numbers of `Reconstruction.numbers`, and `density` over `latent`.

    Raises:
        InputError: there are no rows, or they are not finite or of another width.
    """
    sums = Reconstruction(dictionary)
    for a in range(0, len(x), batch_size):
        rows = torch.as_tensor(x[a : a + batch_size]).flatten(1)
        if not bool(rows.isfinite().all()):
            raise InputError(f"rows {a} to {a + len(rows) - 1} hold NaN or infinity")
        device = dictionary.W_dec.device
        outputs = None if y is None else torch.as_tensor(y[a : a + batch_size]).to(device)
        sums.update(rows.to(device), outputs)
    return _result(sums, {}, provenance(None, None, dictionary=repr(dictionary), rows=sums.rows))


def evaluate(
    model: Model,
    site: str,
    dictionary: Dictionary,
    inputs: Any,
    *,
    output: str | None = None,
    ablation: str = "zero",
    skip_first: bool = True,
    batch_size: int = 16,
    progress: bool = False,
) -> Result:
    """All measures of a dictionary on a model's own texts.

    Args:
        model: a causal language model.
        site: what the dictionary reads.
        dictionary: an autoencoder, or a transcoder with `output`.
        inputs: texts or Tokens.
        output: the site that a transcoder writes.
        ablation: what the loss is compared with: "zero" or "mean" (over these texts) in the place of the site.
        skip_first: leave the first token of each text out of the measures of rows; its activations are often unlike all
            others, and would decide the variance. It is spliced like the others.
        batch_size: texts at a time.
        progress: show a progress bar.

    Returns:
        Result: the numbers of `Reconstruction.numbers`; cross-entropies `ce_clean`, `ce_spliced` and `ce_ablated` in
        nats a predicted token; `ce_recovered` = (ablated - spliced) / (ablated - clean); `kl_spliced`, `kl_ablated`
        from the clean distribution; `kl_recovered` = 1 - spliced / ablated; `density` over `latent`.

    Raises:
        InputError: widths differ, no text has two tokens, or the ablation is unknown.
        SiteError: a site does not exist.

    Source: of the measures Bricken et al., 2023; Karvonen et al., 2025 (SAEBench).
    """
    if ablation not in ("zero", "mean"):
        raise InputError(f"ablation is 'zero' or 'mean', not {ablation!r}")
    target = site if output is None else output
    tokens = inputs if isinstance(inputs, Tokens) else model.prepare(inputs).tokens
    if tokens is None or int(tokens.mask.sum(1).max()) < 2:
        raise InputError("texts of two tokens or more are needed, for the loss is of the next token")
    first = model.record(tokens[:1], [site, target])
    for one, width in ((site, dictionary.d_in), (target, dictionary.d_out)):
        flattened(first[one], width)
    sums = Reconstruction(dictionary)
    losses = dict.fromkeys(("ce_clean", "ce_spliced", "ce_ablated", "kl_spliced", "kl_ablated"), 0.0)
    count = 0
    edit = Zero() if ablation == "zero" else Mean(_mean(model, target, tokens, batch_size))
    for a in shown(range(0, len(tokens), batch_size), "evaluating", progress):
        batch = tokens[a : a + batch_size]
        with torch.no_grad():
            rec = model.record(batch, list(dict.fromkeys([site, target])), batch_size=batch_size)
            mask = batch.after_first() if skip_first else batch.mask
            kept = mask.to(rec[site].device)
            x, y = (flattened(rec[s], w)[kept] for s, w in ((site, dictionary.d_in), (target, dictionary.d_out)))
            sums.update(x.float(), None if output is None else y.float())
            clean = _predictions(model, batch)
            with splice(model, site, dictionary, error_term=False, output=output):
                spliced = _predictions(model, batch)
            with model.edit({target: edit}):
                ablated = _predictions(model, batch)
        right = batch.ids[:, 1:][batch.mask[:, 1:] & batch.mask[:, :-1]].to(clean.device)
        count += len(right)
        for name, found in (("clean", clean), ("spliced", spliced), ("ablated", ablated)):
            losses[f"ce_{name}"] -= float(found.gather(1, right[:, None]).double().sum())
            if name != "clean":
                losses[f"kl_{name}"] += float((clean.exp() * (clean - found)).double().sum())
    means = {name: value / count for name, value in losses.items()}
    means["ce_recovered"] = _share(means["ce_ablated"] - means["ce_spliced"], means["ce_ablated"] - means["ce_clean"])
    means["kl_recovered"] = _share(means["kl_ablated"] - means["kl_spliced"], means["kl_ablated"])
    about = {"site": site, "output": output, "ablation": ablation, "skip_first": skip_first}
    record = provenance(model, {"ids": tokens.ids, "mask": tokens.mask}, dictionary=repr(dictionary), **about)
    return _result(sums, means, record)


def _predictions(model: Model, tokens: Tokens) -> Tensor:
    """(predicted token, d_vocab) log-probabilities at every real token that has a real one behind it."""
    kept = tokens.mask[:, 1:] & tokens.mask[:, :-1]
    logits = model.logits(tokens)
    return logits[:, :-1][kept.to(logits.device)].float().log_softmax(-1)


def _mean(model: Model, site: str, tokens: Tokens, batch_size: int) -> Tensor:
    rec = model.record(tokens, site, batch_size=batch_size)
    return rec[site][tokens.mask.to(rec[site].device)].mean(0)


def _share(part: float, whole: float) -> float:
    if abs(whole) < 1e-9:
        warnings.warn(
            "ablating the site changes nothing, so no share of it is recovered", ActiniumWarning, stacklevel=3
        )
        return float("nan")
    return part / whole


def _result(sums: Reconstruction, more: dict[str, float], record: dict[str, Any]) -> Result:
    numbers = sums.numbers() | more
    data: dict[str, Any] = {name: ((), value) for name, value in numbers.items()}
    data["density"] = ("latent", sums.density)
    return Result(xr.Dataset(data, {"latent": np.arange(sums.dictionary.d_sae)}), "evaluate", "prisma", record)
