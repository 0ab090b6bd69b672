"""What a steering vector says: where texts lie along it, how layers agree, its tokens, and what separates its texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.features.vocabulary import vocabulary_projection
from actinium.probes.site_vectors import site_activations
from actinium.steering.vector import SteeringVector

__all__ = ["ActivationPCA", "activation_pca", "layer_cosines", "projection_map", "vector_tokens"]

KINDS = {"cosine": "h . v / (|h| |v|)", "projection": "h . v / |v|, in units of the activation"}
"""Name -> what is shown of each token."""


def projection_map(
    model: Model,
    vector: SteeringVector,
    texts: str | Sequence[str],
    *,
    kind: str = "cosine",
    sites: str | Sequence[str] | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Result:
    """How far each token of texts lies along a vector at each of its sites: a heat map of tokens and layers.

    Args:
        model: the model.
        vector: the vector.
        texts: a text or several, laid one behind the other.
        kind: a key of `KINDS`.
        sites: names and patterns among those of the vector.
        batch_size: texts in a pass.
        progress: show a progress bar.

    Returns:
        `cosine` or `projection` over site and token; coordinates of the tokens are their text (or id) and `text`, the
        number of the text that each stands in.

    Raises:
        InputError: no texts, or no token positions at a site.
        UnknownNameError: there is no such kind.
        SiteError: a site that the vector does not have.

    Source: Rimsky et al., 2024, section 5 (similarity of tokens with the vector).
    """
    if kind not in KINDS:
        raise UnknownNameError(unknown("kind", str(kind), KINDS))
    chosen = vector if sites is None else vector.only(sites)
    chosen.check(model, transfer=True)
    tokens = model.prepare(texts).tokens
    if tokens is None:
        raise InputError("a projection map is made of texts or tokens")
    rec = model.record(tokens, chosen.sites, batch_size=batch_size, progress=progress)
    rows = []
    for site, v in chosen.directions.items():
        h = rec[site].float().cpu()
        if h.ndim != 3:
            raise InputError(f"{site} has the dimensions {h.ndim}, not (batch, pos, d): it has no tokens to show")
        along = h @ (v / v.norm())
        along = along / h.norm(dim=-1).clamp_min(1e-30) if kind == "cosine" else along
        rows.append(along[tokens.mask].double().numpy())
    ids = tokens.ids[tokens.mask].tolist()
    words = [str(i) for i in ids] if model.tokenizer is None else model.to_str_tokens(ids)
    number = tokens.rows[:, None].expand_as(tokens.mask)[tokens.mask].numpy()
    data = xr.Dataset(
        {kind: (("site", "token"), np.stack(rows))},
        {"site": chosen.sites, "token": words, "text": ("token", number)},
        {"plot": {"x": "token", "y": "site"}},
    )
    about = provenance(model, [tokens.ids, dict(chosen.directions)], kind=kind)
    return Result(data, "projection_map", "caa", about)


def layer_cosines(vector: SteeringVector, other: SteeringVector | None = None) -> Result:
    """Cosines of a vector's directions at each pair of its sites, or with those of another vector.

    Args:
        vector: one whose directions are of one width.
        other: another; by default the vector itself.

    Returns:
        `cosine` over site and other_site; NaN where a direction is zero.

    Raises:
        InputError: directions differ in width.
    """
    end = vector if other is None else other
    sides = [list(one.directions.values()) for one in (vector, end)]
    widths = {len(v) for side in sides for v in side}
    if len(widths) > 1:
        raise InputError(f"cosines need directions of one width, got {sorted(widths)}; choose sites with .only(...)")
    a, b = (torch.stack(side).double() for side in sides)
    size = torch.outer(a.norm(dim=1), b.norm(dim=1))
    cosine = torch.where(size > 0, a @ b.T / size.clamp_min(1e-300), torch.nan)
    data = xr.Dataset(
        {"cosine": (("site", "other_site"), cosine.numpy())},
        {"site": vector.sites, "other_site": end.sites},
        {"plot": {"x": "other_site", "y": "site"}},
    )
    inputs = [dict(vector.directions), dict(end.directions)]
    return Result(data, "layer_cosines", "caa", provenance(None, inputs))


def vector_tokens(model: Model, vector: SteeringVector, n: int = 10) -> Result:
    """The tokens whose logits the directions raise and lower most (logit lens of a vector).

    Args:
        model: a language model.
        vector: the vector.
        n: tokens at each end.

    Returns:
        over site and rank (0 the most extreme): `top_token`, `top_logit`, `bottom_token`, `bottom_logit`; see
        `features.vocabulary_projection`.

    Raises:
        InputError: the vector does not fit the model, n does not fit, or the unembedding is not known.

    Source: nostalgebraist, 2020 (logit lens).
    """
    vector.check(model, transfer=True)
    parts = [
        vocabulary_projection(model, v, site, n).data.squeeze("direction") for site, v in vector.directions.items()
    ]
    data = xr.concat([part.drop_vars("direction") for part in parts], xr.Variable("site", vector.sites))
    data.attrs = {"plot": {"kind": "heatmap", "variables": ["top_logit"]}}
    return Result(data, "vector_tokens", "caa", provenance(model, dict(vector.directions), n=n))


class ActivationPCA(Result):
    """Texts in the plane of the first principal components, by site."""

    def plot(self, ax: Any = None, variable: str | None = None, site: str | None = None) -> Any:
        """Draw the texts at one site: colour is the label named first (or `variable`), the marker the second label.

        Args:
            ax: matplotlib Axes to draw on; a new one if not given.
            variable: the label that gives the colour.
            site: by default the one where that label separates the texts best.

        Raises:
            InputError, UnknownNameError: no such label or site.
        """
        labels = [str(label) for label in self.data.coords["label"].values]
        colour = labels[0] if variable is None else variable
        if colour not in labels:
            raise UnknownNameError(unknown("label", colour, labels))
        sites = [str(s) for s in self.data.coords["site"].values]
        where = sites[int(np.argmax(self["separation"].sel(label=colour).values))] if site is None else site
        if where not in sites:
            raise UnknownNameError(unknown("site of this result", where, sites))
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(6.4, 4.0), layout="constrained").subplots()
        points = self["component_value"].sel(site=where).values
        shape = next((label for label in labels if label != colour), None)
        hues = self["value"].sel(label=colour).values
        marks = hues if shape is None else self["value"].sel(label=shape).values
        kinds = list(dict.fromkeys(zip(hues.tolist(), marks.tolist(), strict=True)))
        tones, forms = list(dict.fromkeys(hues.tolist())), list(dict.fromkeys(marks.tolist()))
        for hue, mark in kinds:
            here = points[(hues == hue) & (marks == mark)]
            name = str(hue) if shape is None else f"{hue}, {mark}"
            style = {"color": f"C{tones.index(hue) % 10}", "marker": "osv^D*XP"[forms.index(mark) % 8]}
            ax.scatter(here[:, 0], here[:, 1], s=14, label=name, **style)
        ax.set_xlabel("component 1")
        ax.set_ylabel("component 2")
        ax.legend(fontsize="small")
        ax.set_title(f"{self.method}, {where}")
        return ax


def activation_pca(
    model: Model | None,
    inputs: Any,
    labels: dict[str, Sequence[Any]],
    sites: str | Sequence[str] = "blocks.*.resid_post",
    *,
    position: Any = -1,
    batch_size: int = 64,
    progress: bool = False,
) -> ActivationPCA:
    """Activations of texts in the plane of their two first principal components, and what separates them there.

    With the behaviour and the letter of A/B texts as labels one sees from which layer on it is the behaviour, and not
    the letter, that they are ordered by.

    Args:
        model: that reads the texts; None where activations are given.
        inputs: texts of both kinds; or activations, as a Recording or {site: (n, d)}.
        labels: {name: one value for each text}, such as {"behaviour": [...], "letter": [...]}.
        sites: names and patterns.
        position: the token that is read, as in `extract`.
        batch_size: texts in a pass.
        progress: show a progress bar.

    Returns:
        `separation` over site and label: the share of the variance within the plane that lies between the label's
        values (0 none, 1 all); `component_value` over site, text and component; `explained_variance`, share of all
        variance by site and component; `value`, the labels.

    Raises:
        InputError: a label has another number of values, or one value only; fewer than three texts; or they do not
            differ at a site.

    Source: Rimsky et al., 2024, section 3 (figure of the activations' principal components).
    """
    if not labels:
        raise InputError("give one label or more, such as {'behaviour': [...], 'letter': [...]}")
    rows = site_activations(model, inputs, sites, position, batch_size=batch_size, progress=progress)
    count = len(next(iter(rows.values())))
    named = {name: [str(value) for value in values] for name, values in labels.items()}
    for name, values in named.items():
        if len(values) != count:
            raise InputError(f"the label {name!r} has {len(values)} values for {count} texts")
        if len(set(values)) < 2:
            raise InputError(f"all texts have one {name!r}: {values[0]}")
    if count < 3:
        raise InputError(f"principal components of {count} texts say nothing; give three or more")
    planes, shares = [], []
    for site, given in rows.items():
        away = given - given.mean(0)
        left, size, _ = np.linalg.svd(away, full_matrices=False)
        if not size[0] > 1e-9 * max(1e-30, float(np.abs(given).max())):
            raise InputError(f"the texts do not differ at {site}")
        planes.append(np.pad(left * size, ((0, 0), (0, 2)))[:, :2])
        shares.append(np.pad(size**2 / (size**2).sum(), (0, 2))[:2])
    separation = [[_between(plane, values) for values in named.values()] for plane in planes]
    data = xr.Dataset(
        {
            "separation": (("site", "label"), np.array(separation)),
            "component_value": (("site", "text", "component"), np.stack(planes)),
            "explained_variance": (("site", "component"), np.stack(shares)),
            "value": (("label", "text"), np.array(list(named.values()), dtype=object)),
        },
        {"site": list(rows), "label": list(named), "text": np.arange(count), "component": [1, 2]},
    )
    about = provenance(model, dict(rows), labels=named, position=str(position))
    return ActivationPCA(data, "activation_pca", "caa", about)


def _between(plane: Any, values: Sequence[str]) -> float:
    """Share of the variance (n, 2) between the groups of some labels."""
    total = float((plane**2).sum())
    groups = [plane[[v == value for v in values]] for value in dict.fromkeys(values)]
    return float(sum(len(g) * (g.mean(0) ** 2).sum() for g in groups) / total)
