"""A dictionary's latents to look at: where each is active, how often, and what it makes the model say."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from actinium.core.errors import ActiniumError, InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.latent_contexts import top_contexts
from actinium.features.splicing import flattened
from actinium.features.vocabulary import vocabulary_projection

__all__ = ["Browser"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2rem 0 .3rem; font-size: 1.1rem; } p { margin: .2rem 0; color: #555; }
div.context { font-family: ui-monospace, monospace; white-space: pre-wrap; margin: .25rem 0; }
span { border-radius: 3px; } small { color: #777; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd; } p, small { color: #aaa; } }
"""


class Browser:
    """The top contexts of latents, their densities and effects on the logits, from one pass over texts.

    Args:
        model: a language model.
        site: what the dictionary reads.
        dictionary: an autoencoder.
        inputs: texts or Tokens.
        k: contexts of each latent.
        skip_first: leave out the first token of each text.
        batch_size: texts in a pass.
        progress: show a progress bar.

    Attributes:
        density: (d_sae,) share of tokens at which each latent is active.
        largest: (d_sae,) largest activation, 0 if never active.

    Raises:
        InputError, SiteError: as `top_contexts`.
    """

    def __init__(
        self,
        model: Model,
        site: str,
        dictionary: Dictionary,
        inputs: Any,
        *,
        k: int = 10,
        skip_first: bool = True,
        batch_size: int = 64,
        progress: bool = False,
    ) -> None:
        self.model, self.site, self.dictionary, self.batch_size = model, site, dictionary, batch_size
        tokens = inputs if isinstance(inputs, Tokens) else model.prepare(inputs).tokens
        if tokens is None:
            raise InputError("a browser needs texts or Tokens")
        self.tokens = tokens
        self.contexts = top_contexts(
            model,
            site,
            dictionary,
            tokens,
            k=k,
            skip_first=skip_first,
            batch_size=batch_size,
            progress=progress,
        )
        self.largest = np.nan_to_num(self.contexts["value"].values[:, 0])
        self.density = self.contexts["density"].values

    def strongest(self, n: int = 10) -> list[int]:
        """The latents with the largest activations."""
        order = np.argsort(-self.largest, kind="stable")[:n]
        return [int(i) for i in order if self.largest[i] > 0]

    @torch.no_grad()
    def latent(self, latent: int, window: int = 12) -> dict[str, Any]:
        """What there is to see of one latent, as plain values.

        Args:
            latent: which.
            window: tokens shown before and after the strongest.

        Returns:
            `latent`, `density`, `largest`; `contexts`: for each `tokens`, the latent's `values` at them, and `at`, the
            place of the strongest among them; `promotes` and `suppresses`: the tokens that its direction raises and
            lowers most, empty where the site does not write to the stream.

        Raises:
            InputError: there is no such latent.
        """
        if not 0 <= latent < self.dictionary.d_sae:
            raise InputError(f"latents go from 0 to {self.dictionary.d_sae - 1}, not {latent}")
        own = self.contexts.data.sel(latent=latent)
        contexts = []
        for text, position in zip(own["text"].values.tolist(), own["position"].values.tolist(), strict=True):
            if text < 0:
                break
            row = int((self.tokens.rows == text).nonzero()[0])
            one = self.tokens[torch.tensor([row])]
            x = flattened(self.model.record(one, self.site)[self.site], self.dictionary.d_in)
            real = one.mask[0]
            values = self.dictionary.encode(x[0][real.to(x.device)].float())[:, latent].cpu()
            words = self.model.to_str_tokens(one.ids[0][real])
            a, b = max(0, position - window), position + window + 1
            contexts.append({"tokens": words[a:b], "values": values[a:b].tolist(), "at": position - a})
        return {
            "latent": latent,
            "density": float(self.density[latent]),
            "largest": float(self.largest[latent]),
            "contexts": contexts,
            **self._effects(latent),
        }

    def _effects(self, latent: int) -> dict[str, list[str]]:
        try:
            found = vocabulary_projection(self.model, self.dictionary.W_dec[latent].detach()[None], self.site, 8)
        except ActiniumError:
            return {"promotes": [], "suppresses": []}
        top, bottom = (found[f"{end}_token"].values[0].tolist() for end in ("top", "bottom"))
        return {"promotes": [str(t) for t in top], "suppresses": [str(t) for t in bottom]}

    def table(self, latents: list[int] | None = None) -> pd.DataFrame:
        """One row for each latent: density, largest activation, the tokens it is active at and those it promotes."""
        rows = []
        for one in self.strongest() if latents is None else latents:
            page = self.latent(one)
            seen = dict.fromkeys(c["tokens"][c["at"]] for c in page["contexts"])
            rows.append(
                {
                    "latent": one,
                    "density": page["density"],
                    "largest": page["largest"],
                    "active at": " ".join(seen),
                    "promotes": " ".join(page["promotes"][:5]),
                }
            )
        return pd.DataFrame(rows, columns=["latent", "density", "largest", "active at", "promotes"])

    def json(self, latents: list[int] | None = None) -> dict[str, Any]:
        """The pages of latents with what they belong to, as plain values: what an explorer reads."""
        chosen = self.strongest() if latents is None else latents
        return {
            "model": self.model.name,
            "site": self.site,
            "dictionary": repr(self.dictionary),
            "tokens": int(self.tokens.mask.sum()),
            "latents": [self.latent(one) for one in chosen],
        }

    def save(self, folder: str | Path, latents: list[int] | None = None) -> Path:
        """Write `features.json` and `features.html`, which needs nothing else; returns the folder.

        Raises:
            InputError: the folder cannot be written.
        """
        folder, pages = Path(folder), self.json(latents)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "features.json").write_text(json.dumps(pages, indent=1, ensure_ascii=False), encoding="utf-8")
            (folder / "features.html").write_text(_page(pages), encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror}") from None
        return folder


def _page(pages: dict[str, Any]) -> str:
    """One static page: each token shaded by the latent's activation at it."""
    title = html.escape(f"{pages['model']}, {pages['site']}")
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{title}</h1><p>{html.escape(pages['dictionary'])}; {pages['tokens']:,} tokens</p>")
    for page in pages["latents"]:
        parts.append(f"<h2 id=latent-{page['latent']}>Latent {page['latent']}</h2>")
        parts.append(f"<p>active at {100 * page['density']:.2g} % of tokens, at most {page['largest']:.3g}</p>")
        if page["promotes"]:
            words = html.escape(" ".join(page["promotes"])), html.escape(" ".join(page["suppresses"]))
            parts.append(f"<p>promotes <b>{words[0]}</b>; suppresses {words[1]}</p>")
        for context in page["contexts"]:
            shades = [max(0.0, v) / max(page["largest"], 1e-9) for v in context["values"]]
            tokens = [
                f"<span style='background:rgb(20 160 140 / {shade:.2f})' title='{value:.3g}'>{html.escape(word)}</span>"
                for word, shade, value in zip(context["tokens"], shades, context["values"], strict=True)
            ]
            parts.append(f"<div class=context>{' '.join(tokens)}</div>")
    return "\n".join(parts) + "</html>\n"
