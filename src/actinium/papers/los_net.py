"""Bar-Shalom et al., 2025: whole output distributions tell members and right answers better than token scores do."""

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
    3,
    claim=(
        "A small transformer over whole output distributions tells texts of the training data from others, and right "
        "answers from wrong ones, better than the best score of token probabilities, and does so without training on "
        "another language model."
    ),
)
CLAIMED = (
    "LOS-Net is significantly better than gray-box baselines at detecting data contamination (WikiMIA, BookMIA) and "
    "hallucinations (IMDB, Movies, HotpotQA), and transfers across data sets and language models without training."
)
VOCAB, STEPS, TEXTS = 64, 24, 400
SMALL = {"d": 64, "heads": 4, "lr": 1e-3, "epochs": 20}
SKILLS = ("two_hop", "two_hop_new_person")


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Detect members of the training data of small language models, and wrong answers of `world:lm`.

    Pairs of language models are trained on one half of 400 texts each, drawn from a bigram source of their own; texts
    differ in how predictable they are. Detectors learn from three fifths of the texts and are tested on the rest.
    Answers are those of `world:lm` to facts of several hops; no person stands on both sides of the split. The claim
    holds if LOS-Net's AUROC, averaged over models or splits, is above that of the best baseline for (1) members, (2)
    right answers, (3) members of the other model of a pair, of which it has seen nothing.

    Args:
        seed: the first of the seeds of sources, models and splits.
        model: not used: membership is known for models that are trained here only.
        quick: one pair and one split instead of three of each, and without the ablation.

    Raises:
        InputError: a model is given.
        MissingExtraError: scikit-learn, which makes the splits, is not installed.
    """
    if model is not None:
        raise InputError("this experiment trains its own models; for yours fit ac.probes.LOSNet to its signatures")
    seeds = range(seed, seed + (1 if quick else 3))
    members = [row for s in seeds for row in _members(s, not quick)]
    answers = [_answers(s, not quick) for s in seeds]
    measured: dict[str, Any] = {}
    means = {name: _means(rows) for name, rows in (("members", members), ("answers", answers))}
    for name, found in means.items():
        measured |= {f"{name}: {score}, AUROC": value for score, value in found.items()}
    baselines = {name: max(v for k, v in found.items() if k not in LEARNED) for name, found in means.items()}
    measured |= {f"{name}: best baseline, AUROC": value for name, value in baselines.items()}
    parts = {
        "members are told better than by the best baseline": means["members"]["LOS-Net"] > baselines["members"],
        "right answers are told better than by the best baseline": means["answers"]["LOS-Net"] > baselines["answers"],
        "so are members of a model it has not seen": means["members"]["LOS-Net of the other model"]
        > baselines["members"],
    }
    measured |= claims_of(parts)
    names = list(means["members"])
    table = [[means[task].get(name, np.nan) for name in names] for task in means]
    data = xr.Dataset({"auroc": (("task", "score"), table)}, coords={"task": list(means), "score": names})
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Models of two blocks read each of 200 texts ten times; texts have 24 tokens of 64. An answer is one "
            "token and the signature is that of its one step, so that token scores are those of its probability; about "
            "one answer in fourteen is wrong. Networks are half as wide as the published ones, train for 20 epochs and "
            "see 240 texts, a third of the smallest published data set."
        ),
        result=ac.Result(data, "los_net"),
        settings={"seeds": len(seeds), "first seed": seed, "texts": TEXTS, **SMALL},
    )


LEARNED = ("LOS-Net", "LOS-Net of the other model", "ATP+R transformer")


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _members(seed: int, ablation: bool) -> list[dict[str, float]]:
    """AUROC of every score on the test texts of two models, each read by its own network and by the other's."""
    sides = [_read(2 * seed + i) for i in range(2)]
    nets, found = [], []
    for signatures, labels, train, test in sides:
        own = [signatures[i] for i in train]
        net = ac.probes.LOSNet(VOCAB, STEPS - 1, seed=seed, **SMALL).fit(own, labels[train])
        held = [signatures[i] for i in test]
        scores = ac.probes.membership_scores(held)
        row = {name: ac.probes.auroc(values, labels[test]) for name, values in scores.items()}
        row["LOS-Net"] = net.score(held, labels[test])
        if ablation:
            tokens = ac.probes.ATP_R_Transformer(STEPS - 1, seed=seed, **SMALL).fit(own, labels[train])
            row["ATP+R transformer"] = tokens.score(held, labels[test])
        nets.append(net)
        found.append(row)
    for i, (signatures, labels, _, test) in enumerate(sides):
        found[i]["LOS-Net of the other model"] = nets[1 - i].score([signatures[j] for j in test], labels[test])
    return found


def _read(seed: int) -> tuple[list[Any], np.ndarray, np.ndarray, np.ndarray]:
    """Signatures of all texts by a model that was trained on the first half, labels, training and test rows."""
    texts = _texts(seed)
    module = _language_model(texts[: TEXTS // 2], seed)
    signatures = ac.probes.output_signatures(ac.load(module), texts, keep=None, batch_size=100)
    labels = (np.arange(TEXTS) < TEXTS // 2).astype(np.int64)
    order = np.random.default_rng(seed).permutation(TEXTS)
    return signatures, labels, order[: TEXTS * 3 // 5], order[TEXTS * 3 // 5 :]


def _texts(seed: int) -> Tensor:
    """(text, step) tokens of a bigram source, each text at a temperature of its own, from 0.5 to 1.5."""
    random = torch.Generator().manual_seed(seed)
    source = 2 * torch.randn(VOCAB, VOCAB, generator=random)
    temperature = 0.5 + torch.rand(TEXTS, 1, generator=random)
    ids = torch.randint(0, VOCAB, (TEXTS, 1), generator=random)
    for _ in range(STEPS - 1):
        p = torch.softmax(source[ids[:, -1]] / temperature, -1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=random)], 1)
    return ids


def _language_model(texts: Tensor, seed: int, epochs: int = 10) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": STEPS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **sizes, **drop))
        optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(texts)).split(50):
                optimiser.zero_grad()
                logits = module(input_ids=texts[rows]).logits[:, :-1]
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), texts[rows, 1:].flatten()).backward()
                optimiser.step()
    return module.eval()


def _answers(seed: int, ablation: bool) -> dict[str, float]:
    """AUROC of every score on `world:lm`'s own answers, right against wrong, of people that were not trained on."""
    model = ac.load("world:lm")
    documents = [d for skill in SKILLS for d in ac.world.corpus.held_out_documents(skill, 1000, seed)]
    people = [next(w for w in d.prompt.split() if w.strip(",") in ac.world.lexicon.NAMES).strip(",") for d in documents]
    prompts = model.to_tokens([d.prompt for d in documents])
    with torch.no_grad():
        logits = model.logits(prompts)[torch.arange(len(documents)), prompts.mask.sum(1) - 1]
    said = logits.argmax(-1)
    wanted = [model.tokenizer(d.answer, add_special_tokens=False)["input_ids"][0] for d in documents]
    labels = (said.numpy() == np.array(wanted)).astype(np.int64)
    signatures = [
        ac.probes.OutputSignature.from_logits(row[None], token[None], shift=False, keep=200)
        for row, token in zip(logits, said, strict=True)
    ]
    train, test = ac.probes.group_split(labels, people, 1 / 3, seed=seed)
    own, held = ([signatures[i] for i in rows] for rows in (train, test))
    groups = [people[i] for i in train]
    net = ac.probes.LOSNet(200, 1, seed=seed, **SMALL).fit(own, labels[train], groups=groups)
    scores = ac.probes.membership_scores(held)
    found = {name: ac.probes.auroc(values, labels[test]) for name, values in scores.items()}
    found["LOS-Net"] = net.score(held, labels[test])
    if ablation:
        tokens = ac.probes.ATP_R_Transformer(1, seed=seed, **SMALL).fit(own, labels[train], groups=groups)
        found["ATP+R transformer"] = tokens.score(held, labels[test])
    return found
