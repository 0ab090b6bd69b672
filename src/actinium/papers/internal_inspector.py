"""Beigi et al., 2024: the states of all layers say whether an answer is right, and how surely."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    61,
    claim=(
        "Learned from the internal states of all layers, confidence in the answers of a language model is more often "
        "on the right side of one half and better calibrated than the model's own probabilities, with and without a "
        "fitted temperature, and than a probe of the last layer; it ranks answers no worse than the probabilities do."
    ),
)
CLAIMED = (
    "Higher accuracy of confidence (on factual questions by 19.8 % on average over the best baseline) and a lower "
    "calibration error (by 8.95 %) than logits, self-evaluation, temperature scaling and last hidden states."
)
SUBJECTS, RELATIONS, ANSWERS = 300, 4, 20
SKILLS = ("two_hop", "two_hop_new_person")
FAST = {"width": 64, "lr": 1e-3, "epochs": 20}
BINS = 10
OURS = ("transformer", "cnn")
WHAT = ("accuracy", "ECE", "AUROC")


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Judge the answers of a small model that knows half of its world, and those of `world:lm` to hard questions.

    The small model has read four facts about each of 300 subjects: of one half of them 100 times, of the other once.
    The questions to `world:lm` are facts of several hops, of which it has read the parts. Confidence is learned from
    three fifths of the subjects (of `world:lm` two thirds of the people) and measured on the others. The claim holds
    if, averaged over seeds, for both models the transformer over the layers (1) is more accurate than every baseline,
    (2) has a lower calibration error than each, and (3) has an AUROC no more than .02 below that of the largest
    probability, and if (4) for the small model this AUROC is above .9.

    Args:
        seed: the first of the seeds of facts, models and splits.
        model: not used: which facts a model has read is known for models of this package only.
        quick: one seed and the transformer instead of three, and the CNN beside it.

    Raises:
        InputError: a model is given.
        MissingExtraError: scikit-learn, whose probe is a baseline, is not installed.
    """
    if model is not None:
        raise InputError("this experiment has models of its own; for yours fit ac.probes.InternalInspector")
    seeds = range(seed, seed + (1 if quick else 3))
    encoders = OURS[:1] if quick else OURS
    found = {name: [run(s, encoders) for s in seeds] for name, run in (("popular facts", _popular), ("world", _world))}
    names = list(found["world"][0]["scores"])
    table = {task: {n: np.mean([[*r["scores"][n]] for r in runs], 0) for n in names} for task, runs in found.items()}
    measured: dict[str, Any] = {}
    parts: dict[str, bool | None] = {}
    for task, rows in table.items():
        measured[f"{task}: answers that are right"] = float(np.mean([run["right"] for run in found[task]]))
        measured |= {f"{task}: {n}, {w}": float(v) for n, row in rows.items() for w, v in zip(WHAT, row, strict=True)}
        accuracy, ece, area = rows["transformer"]
        others = [row for n, row in rows.items() if n not in OURS]
        parts |= {
            f"{task}: more accurate than every baseline": bool(accuracy > max(row[0] for row in others)),
            f"{task}: better calibrated than every baseline": bool(ece < min(row[1] for row in others)),
            f"{task}: ranks no worse than the largest probability": bool(area >= rows["probability"][2] - 0.02),
        }
    parts["popular facts: AUROC above .9"] = bool(table["popular facts"]["transformer"][2] > 0.9)
    measured |= claims_of(parts)
    data = xr.Dataset(
        {
            w: (("task", "confidence"), [[rows[n][i] for n in names] for rows in table.values()])
            for i, w in enumerate(WHAT)
        },
        coords={"task": list(table), "confidence": names},
    )
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "The paper's models have billions of parameters and answer in sentences; here an answer is one token. "
            "How often a subject was read of decides what the small model knows. Encoders are a quarter as wide as the "
            "defaults. "
            f"Calibration errors are over {BINS} bins of equal width."
        ),
        result=ac.Result(data, "internal_inspector"),
        settings={"seeds": len(seeds), "first seed": seed, **FAST},
    )


def _popular(seed: int, encoders: tuple[str, ...]) -> dict[str, Any]:
    """Facts of which the model has read half often and half once."""
    random = torch.Generator().manual_seed(seed)
    subject, relation = (
        t.flatten() for t in torch.meshgrid(torch.arange(SUBJECTS), torch.arange(RELATIONS), indexing="ij")
    )
    answer = torch.randint(0, ANSWERS, (len(subject),), generator=random)
    known = torch.randperm(SUBJECTS, generator=random)[: SUBJECTS // 2]
    first = SUBJECTS + RELATIONS
    ids = torch.stack([subject, SUBJECTS + relation, first + relation * ANSWERS + answer], -1)
    model = ac.load(_language_model(ids, torch.isin(subject, known), seed))
    return _judged(model, ids[:, :2], ids[:, 2], subject.numpy(), 0.4, seed, encoders)


def _language_model(facts: Tensor, often: Tensor, seed: int, epochs: int = 100) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = GPT2LMHeadModel(GPT2Config(vocab_size=int(facts.max()) + 1, **sizes, **drop))
        optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
        for epoch in range(epochs):
            read = facts if epoch == 0 else facts[often]
            for rows in torch.randperm(len(read)).split(150):
                optimiser.zero_grad()
                logits = module(input_ids=read[rows, :2]).logits[:, -1]
                torch.nn.functional.cross_entropy(logits, read[rows, 2]).backward()
                optimiser.step()
    return module.eval()


def _world(seed: int, encoders: tuple[str, ...]) -> dict[str, Any]:
    """Facts of several hops of which `world:lm` has read the parts only."""
    model = ac.load("world:lm")
    documents = [d for skill in SKILLS for d in ac.world.corpus.held_out_documents(skill, 1000, seed)]
    people = [next(w for w in d.prompt.split() if w.strip(",") in ac.world.lexicon.NAMES).strip(",") for d in documents]
    answers = [model.tokenizer(d.answer, add_special_tokens=False)["input_ids"][0] for d in documents]
    prompts = model.to_tokens([d.prompt for d in documents])
    return _judged(model, prompts, torch.tensor(answers), np.array(people), 1 / 3, seed, encoders)


def _judged(
    model: Any, prompts: Any, answers: Tensor, groups: np.ndarray, share: float, seed: int, encoders: tuple[str, ...]
) -> dict[str, Any]:
    """Accuracy, calibration error and AUROC of every confidence on groups that were kept apart."""
    states = ac.probes.StackedStates.capture(model, prompts)
    rows = prompts.mask.sum(1) - 1 if hasattr(prompts, "mask") else torch.full((len(prompts),), prompts.shape[1] - 1)
    with torch.no_grad():
        logits = model.logits(prompts)[torch.arange(len(rows)), rows]
    right = (logits.argmax(-1) == answers).long().numpy()
    train, test = ac.probes.group_split(right, groups, share, seed=seed)
    scaled = ac.probes.TemperatureScaling().fit(logits[train], answers[train])
    last = states.select(("resid_post",), [-1]).values[:, 0, 0].float()
    probe = ac.probes.LinearProbe(C=0.01).fit(last[train], right[train])
    confidence = {
        "probability": logits[test].softmax(-1).max(-1).values.numpy(),
        "probability, temperature": scaled.predict_proba(logits[test]).max(-1),
        "probe of the last layer": probe.predict_proba(last[test])[:, 1],
    }
    for encoder in encoders:
        found = ac.probes.InternalInspector(encoder, seed=seed, **FAST)
        found.fit(states[train], right[train], groups=groups[train])
        confidence[encoder] = found.predict_proba(states[test])[:, 1]
    y = right[test]
    scores = {
        name: (
            float(((p > 0.5) == y).mean()),
            ac.probes.calibration_error(p, y, bins=BINS),
            ac.probes.auroc(p, y),
        )
        for name, p in confidence.items()
    }
    return {"scores": scores, "right": float(right.mean())}
