"""Turner et al., 2023: the difference of two short prompts, added to the start of a text, steers what follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper
from actinium.papers.steered_behaviours import Behaviour, OffTarget, behaviours, off_target

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    94,
    claim=(
        "The difference of two short prompts, added at the start of a text while it is read, moves the behaviour that "
        "they name monotonically with its strength, as random vectors of the same lengths do not, and leaves texts and "
        "facts of other kinds as they were."
    ),
)
CLAIMED = (
    "In GPT-2-XL pairs such as 'Love' and 'Hate' steer topic and sentiment at layers 6 to 24 without any data, the "
    "perplexity of texts of the topic falls and that of others does not change, and facts are kept; the same was "
    "found with Llama-13B and GPT-J-6B."
)
STRENGTHS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
# Set before anything was measured: gain over the unsteered model, a step back that still counts as monotone, the part
# of the gain that random vectors may have, and what other texts and facts may lose.
GAIN, STEP, RANDOM, PERPLEXITY, FACTS = 0.25, 0.05, 0.5, 0.05, 0.05


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Steer with two short prompts at the layer that some prompts choose, and measure on others.

    Layer and strength (1, 2 or 4) are those of the highest success on prompts for choosing. The claim holds if for
    every behaviour and seed (1) on other prompts success is 0.25 higher there than without the addition; (2) at this
    layer no step from strength -4 to 4 lowers it by more than 0.05; (3) three random additions of the same lengths
    raise it less than half as much on average; and (4) the perplexity of texts of other skills, scored after the
    tokens that are added to, changes by 5 % at most, and the share of facts of which the answer is the likeliest
    token falls by 0.05 at most.

    Args:
        seed: the first of the seeds of words and prompts.
        model: a causal language model with a tokenizer; the shipped `world:lm` by default. One that does not keep the
            words of the world whole is steered to happy and sad stories, judged by words that were fixed beforehand.
        quick: one seed with 12 prompts to choose on, instead of five with 24.

    Raises:
        InputError: the model does not predict the next token, or has no tokenizer.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm":
        raise InputError(f"this experiment needs a causal language model, not {model.name}")
    seeds = range(seed, seed + (1 if quick else 5))
    prompts, rows = (12, 12) if quick else (24, 48)
    runs: list[tuple[str, dict[str, Any]]] = []
    for s in seeds:
        others = off_target(model, 1000 + s, rows)
        for behaviour in behaviours(model, s, 8, prompts):
            runs.append((behaviour.name, _one(model, behaviour, others, s)))
    measured: dict[str, Any] = {"model": model.name}
    names = list(dict.fromkeys(name for name, _ in runs))
    for name in names:
        own = [run for kind, run in runs if kind == name]
        for quantity in own[0]["measured"]:
            measured[f"{name}: {quantity}"] = float(np.mean([run["measured"][quantity] for run in own]))
        for claim in own[0]["parts"]:
            measured[f"{name}: share of seeds, {claim}"] = float(np.mean([run["parts"][claim] for run in own]))
    parts: dict[str, bool | None] = {
        claim: all(run["parts"][claim] for _, run in runs) for claim in runs[0][1]["parts"]
    }
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Means over seeds; the parts of the claim are judged for every behaviour and seed. Success is the share of "
            "greedy continuations that decline, are glad, or are Velic (0.5 where a text says no feeling). Texts of "
            "this world have ten words: an addition of two to four tokens lies on their subject, which the paper's "
            "texts do not have there. The same addition on pad tokens in front of the text (mode 'pad') is measured "
            "beside it and not judged. Where the unsteered model is glad already a gain has no room, and success "
            "falls with strengths below 0 alone."
        ),
        result=runs[0][1]["result"],
        settings={
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            "model": model.name,
            "prompts": prompts,
            **{f"words, {n}": "; ".join(run["words"] for kind, run in runs if kind == n) for n in names},
            **{f"cell, {n}": ", ".join(run["cell"] for kind, run in runs if kind == n) for n in names},
        },
    )


def _one(model: Any, behaviour: Behaviour, others: OffTarget, seed: int) -> dict[str, Any]:
    """One behaviour in one seed."""
    plus, minus = behaviour.words
    found = {}
    for layer in range(model.n_layers):
        found[layer] = ac.steering.ActivationAddition.from_prompts(
            model, plus, minus, site=f"blocks.{layer}.resid_pre", pad=behaviour.pad
        )
    select, test = (_long_enough(model, p, len(found[0])) for p in (behaviour.select, behaviour.test))
    grid = np.stack([_success(model, found[layer], STRENGTHS, behaviour, select) for layer in found])
    up = [i for i, s in enumerate(STRENGTHS) if s > 0]
    best, column = np.unravel_index(int(grid[:, up].argmax()), (len(found), len(up)))
    layer, strength = int(best), STRENGTHS[up[int(column)]]
    addition = found[layer]

    curve = _success(model, addition, STRENGTHS, behaviour, test)
    plain = curve[STRENGTHS.index(0.0)]
    gain = float(curve[STRENGTHS.index(strength)] - plain)
    controls = [addition.random_like(10 * seed + number) for number in range(3)]
    random = [float(_success(model, c, [strength], behaviour, test)[0] - plain) for c in controls]
    out = {f"success at {s:g}": float(value) for s, value in zip(STRENGTHS, curve, strict=True)}
    out["gain"] = gain
    out["gain of random additions"] = float(np.mean(random))
    out["relative norm"] = float((addition * strength).relative_norm(model, test)[:, 1:].mean())
    out |= _off_target(model, behaviour, addition * strength, others)
    parts = {
        "success is higher": gain >= GAIN,
        "it rises with the strength": float(np.diff(curve).min()) >= -STEP,
        "random additions do not raise it as much": out["gain of random additions"] < RANDOM * gain,
        "other texts and facts are kept": abs(out["perplexity ratio of other texts"] - 1) <= PERPLEXITY
        and out.get("facts lost", 0.0) <= FACTS,
    }
    data = xr.Dataset(
        {"success": (("site", "strength"), grid)},
        {"site": [a.site for a in found.values()], "strength": list(STRENGTHS)},
        {"plot": {"x": "strength", "y": "site"}},
    )
    result = ac.Result(data, "actadd", "actadd", {"behaviour": behaviour.name, "words": [plus, minus], "seed": seed})
    return {
        "measured": out,
        "parts": parts,
        "cell": f"{layer} at {strength:g}",
        "words": f"{plus} - {minus}",
        "result": result,
    }


def _success(model: Any, addition: Any, strengths: Any, behaviour: Behaviour, prompts: list[str]) -> Any:
    """Mean verdict by strength; all strengths in one pass, each row with its own."""
    each = torch.tensor([float(s) for s in strengths]).repeat_interleave(len(prompts))
    texts = prompts * len(strengths)
    written = (addition * each).generate(model, texts, max_new_tokens=behaviour.tokens, do_sample=False)
    return np.array([behaviour.judge(text) for text in written]).reshape(len(strengths), -1).mean(1)


def _off_target(model: Any, behaviour: Behaviour, addition: Any, others: OffTarget) -> dict[str, float]:
    """What the addition does to texts and facts of other kinds, on their own tokens and on pad tokens before them."""
    n = len(addition)
    texts = _long_enough(model, others.texts, n + 1)
    ratio = ac.steering.perplexity_ratio(model, texts, addition.edits(), skip=n)
    out = {"perplexity ratio of other texts": float(ratio["ratio_of_all"])}
    if others.tasks:
        facts = others.tasks[0]
        effect = ac.steering.task_effects(model, facts, addition.edits())
        out["facts lost"] = float(effect["unsteered_top_k"][0] - effect["top_k"][0])
    padded = ac.steering.ActivationAddition.from_prompts(
        model,
        *behaviour.words,
        site=addition.site,
        strength=addition.strength,
        mode="pad",
        pad=behaviour.pad,
    )
    before = padded.prepared(model, texts)
    ratio = ac.steering.perplexity_ratio(model, before, padded.edits(), skip=n)
    return out | {"perplexity ratio of other texts, on pads": float(ratio["ratio_of_all"])}


def _long_enough(model: Any, texts: list[str], n: int) -> list[str]:
    """Texts of n tokens or more."""
    length = model.to_tokens(texts).mask.sum(1).tolist()
    kept = [text for text, size in zip(texts, length, strict=True) if size >= n]
    if not kept:
        raise InputError(f"no prompt has the {n} tokens of the addition; choose shorter words")
    return kept
