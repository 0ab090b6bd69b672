"""Zhang, Kaniselvan, Mireshghallah, 2025: training by reward changes how queries are processed, not what is stored."""

from __future__ import annotations

import copy
import random
import re
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    4,
    claim=(
        "A model trained by reward answers questions that need several steps through known facts better than its base "
        "and than one fine-tuned on answers; a prompt that asks for the steps gives the base most of that; the reward-"
        "trained model finds longer paths better. Its states on statements of facts stay like those of the others, its "
        "states on questions do not."
    ),
)
CLAIMED = (
    "MedConceptsQA and patents, DeepSeek-V3 and R1 and others: models trained by reinforcement beat base and "
    "fine-tuned ones on recall that traverses a hierarchy; structured prompting cuts the gap from 24 to 7 points (71 % "
    "of it); the advantage in recalling the right path stays on deep retrieval; between fine-tuned and reinforced "
    "model the cosine of states is high on facts and noticeably lower on queries."
)
MODELS = ("lm", "lm-narrow", "lm-reward")
PAIRS = (("lm", "lm-narrow"), ("lm", "lm-reward"), ("lm-narrow", "lm-reward"))
# The reward-trained model in a pair is what the claim is about.
CLAIMED_PAIRS = PAIRS[1:]
STEPS = "Think step by step."
SUFFIX = " The"
UNRELATED = ("ioi", "greater_than", "sentiment", "arithmetic")
# A gap counts from this mean difference of cosines in the upper half of the layers on, prompting as most of an
# advantage from this share on, and facts as kept if the accuracy changes by less than the last number.
GAP, MOST, KEPT = 0.02, 0.5, 0.02


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Compare `world:lm` with its variants fine-tuned on answers (`lm-narrow`) and by reward (`lm-reward`).

    Both variants learnt nested questions ("What is the tool of the job of Ann?"), which the base does not answer though
    it knows every fact on the way. Asked are questions about facts that no model has read put together. Several draws
    of them are examined, and each rule has to hold in every draw:
    states: for lm-reward with each of the two others the gap, mean cosine on the facts that a question needs
    (elementary statements, one after the other) minus that on the question, is above 0.02 in the upper half of the
    layers, and its mean over all layers has a bootstrap interval above 0; raw and centred, and with a common suffix.
    Kept: the accuracies of lm-reward and lm on elementary statements differ by less than 2 points. Traversal:
    lm-reward answers more questions right than lm, and more than lm-narrow. Prompting: with "Think step by step." lm
    gains at least half of lm-reward's advantage. Depth: on questions of four hops, reasoned out step by step, the mean
    F1 of the edges of lm-reward's path is above that of lm and that of lm-narrow.

    Args:
        seed: of the draws of the questions.
        model: none, for the experiment needs three models that differ in their training only.
        quick: 3 draws of 24 questions instead of 5 of 96, and without the code tree of 27 leaves.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError(
            "this experiment compares world:lm with its variants and takes no other model; for two checkpoints of "
            "your own call ac.compare.fact_query_gap(a, b, facts, queries)"
        )
    known = {name: ac.load(f"world:{name}") for name in MODELS}
    seeds = range(seed, seed + (3 if quick else 5))
    draws = [_draw(s, 24 if quick else 96) for s in seeds]
    gaps = {pair: [_gaps(known[pair[0]], known[pair[1]], draw) for draw in draws] for pair in PAIRS}
    behaviour = _behaviour(known, draws)
    evaluate = ac.world.evaluate
    facts = {
        name: evaluate(m.module, m.tokenizer, 300 if quick else 1000, seed, ["facts"])["facts"]
        for name, m in known.items()
    }
    measured = {f"accuracy on elementary statements, {name}": value for name, value in facts.items()}
    measured |= _shown_behaviour(behaviour) | {k: v for pair in PAIRS for k, v in _shown_gaps(pair, gaps[pair]).items()}
    parts = _parts(gaps, behaviour, facts)
    if not quick:
        measured |= _code_tree(range(seed, seed + 3))
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Numbers with a range are the lowest and highest of the draws. lm-narrow is fine-tuned on the answers of "
            "the same questions that lm-reward is rewarded for; the paper's fine-tuned models are general ones, so "
            "that lm-reward should beat it is more than the paper says. Cosines are of the last token. A statement "
            "ends in content and a question in a template, so the gap is measured again behind a common suffix (where "
            "centring leaves nothing at the embedding) and for pairs of nearly equal length. The variants change the "
            "blocks only: at the embedding all cosines are 1."
        ),
        result=gaps[CLAIMED_PAIRS[0]][0]["last token"],
        settings={"seeds": list(seeds), "questions": len(draws[0]["queries"]), "gap": GAP, "most": MOST, "kept": KEPT},
    )


def _draw(seed: int, n: int) -> dict[str, Any]:
    """Nested questions with the facts that they need, deep ones, and unrelated texts."""
    source, nested = random.Random(seed), ac.world.nested
    asked = source.sample([*nested.queries("person"), *nested.queries("pair")], n)
    unrelated = [
        document.prompt for skill in UNRELATED for document in ac.world.corpus.held_out_documents(skill, n // 4, seed)
    ]
    return {
        "asked": asked,
        "deep": source.sample(nested.queries("deep"), n),
        "facts": [query.facts() for query in asked],
        "queries": [query.text() for query in asked],
        "direct": [ac.world.knowledge.question(query.person, query.first) for query in asked],
        "unrelated": unrelated,
    }


def _gaps(a: Any, b: Any, draw: dict[str, Any]) -> dict[str, Any]:
    """The gap in a draw under each control."""
    facts, queries = draw["facts"], draw["queries"]
    even = ac.compare.same_length(a, facts, queries, tolerance=1)
    gap = ac.compare.fact_query_gap
    similarity = ac.compare.layerwise_similarity(a, b, queries)
    return {
        "last token": gap(a, b, facts, queries, unrelated=draw["unrelated"]),
        "common suffix": gap(a, b, facts, queries, suffix=SUFFIX),
        "mean of tokens": gap(a, b, facts, queries, pool="mean"),
        "near length": gap(a, b, [facts[i] for i in even], [queries[i] for i in even]),
        "direct questions": gap(a, b, facts, draw["direct"]),
        "slope": ac.compare.depth_slope(similarity, [query.hops for query in draw["asked"]]),
    }


def _upper(result: Any, name: str) -> float:
    """Mean of a variable over the upper half of the layers."""
    values = result[name].values
    return float(values[len(values) // 2 + 1 :].mean())


def _shown_gaps(pair: tuple[str, str], draws: list[dict[str, Any]]) -> dict[str, str | float]:
    """Cosines and gaps of a pair of models, over the draws."""
    title = " and ".join(pair)
    out: dict[str, str | float] = {}
    for name in ("facts", "queries", "unrelated", "facts_centred", "queries_centred"):
        values = [_upper(found["last token"], name) for found in draws]
        out[f"{title}: cosine, upper half, {name.replace('_', ', ')}"] = _range(values)
    for control in list(draws[0])[:-1]:
        for kind in ("", "_centred"):
            values = [_upper(found[control], f"gap{kind}") for found in draws]
            out[f"{title}: gap, upper half, {control}{kind.replace('_', ', ')}"] = _range(values)
    slopes = [float(found["slope"]["slope"][-1]) for found in draws]
    return out | {f"{title}: change of the queries' cosine per hop, last layer": _range(slopes)}


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"


def _behaviour(known: dict[str, Any], draws: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each draw: shares of right answers, plain and step by step, the recovered share, and paths of deep ones."""
    asked, deep = ([query for draw in draws for query in draw[name]] for name in ("asked", "deep"))
    right: dict[tuple[str, str], np.ndarray] = {}
    paths: dict[str, np.ndarray] = {}
    for name, model in known.items():
        for kind, queries, cue in (("plain", asked, ""), ("steps", asked, STEPS), ("deep", deep, STEPS)):
            # Whoever reasons gets room for it: four hops and the answer are 36 tokens.
            said = model.generate([query.text(cue) for query in queries], max_new_tokens=44, do_sample=False)
            scores = [ac.world.variants.right(text, query.answer) for text, query in zip(said, queries, strict=True)]
            right[name, kind] = np.reshape(scores, (len(draws), -1)).astype(float)
        scored = ac.compare.hierarchy_path_score([_path(text) for text in said], [query.path for query in deep])
        paths[name] = np.stack([scored[v].values.reshape(len(draws), -1).mean(1) for v in ("prefix", "edge_f1")], 1)
    found = []
    for i in range(len(draws)):
        # Without an advantage there is nothing of which prompting could give a share.
        gains = right["lm-reward", "plain"][i].mean() > right["lm", "plain"][i].mean()
        scores = right["lm", "plain"][i], right["lm", "steps"][i], right["lm-reward", "plain"][i]
        found.append(
            {
                "right": {key: float(values[i].mean()) for key, values in right.items()},
                "recovered": float(ac.compare.gap_recovered(*scores)["recovered"]) if gains else None,
                "paths": {name: values[i].tolist() for name, values in paths.items()},
            }
        )
    return found


def _path(text: str) -> list[str]:
    """The first subject and every answer of reasoning such as "The job of Ann is cook. The tool of the cook is pan"."""
    steps = re.findall(r"The \w+ of (?:the )?(\w+) is (\w+)", text)
    return [steps[0][0], *(answer for _, answer in steps)] if steps else []


def _shown_behaviour(draws: list[dict[str, Any]]) -> dict[str, str | float]:
    """Accuracies and path scores over the draws."""
    kinds = {"plain": "nested questions", "steps": "nested questions, step by step", "deep": "four hops, step by step"}
    out: dict[str, str | float] = {}
    for kind, title in kinds.items():
        for name in MODELS:
            out[f"{title}: right, {name}"] = _range([draw["right"][name, kind] for draw in draws])
    shares = [draw["recovered"] for draw in draws if draw["recovered"] is not None]
    out["share of lm-reward's advantage that prompting gives lm"] = _range(shares) if shares else "no advantage"
    for name in MODELS:
        for i, score in enumerate(("equal nodes from the start", "F1 of the edges")):
            out[f"four hops: {score}, {name}"] = _range([draw["paths"][name][i] for draw in draws])
    return out


def _parts(gaps: dict[Any, Any], behaviour: list[dict[str, Any]], facts: dict[str, float]) -> dict[str, bool]:
    """Whether each part of the claim shows in every draw."""

    def apart(result: Any) -> bool:
        return all(_upper(result, f"gap{k}") > GAP and float(result[f"area_low{k}"]) > 0 for k in ("", "_centred"))

    parts = {
        f"facts stay and questions change between {' and '.join(pair)}": all(
            apart(found[control]) for found in gaps[pair] for control in ("last token", "common suffix")
        )
        for pair in CLAIMED_PAIRS
    }
    plain = [{name: draw["right"][name, "plain"] for name in MODELS} for draw in behaviour]
    edges = [{name: draw["paths"][name][1] for name in MODELS} for draw in behaviour]
    return parts | {
        "facts are kept": abs(facts["lm-reward"] - facts["lm"]) < KEPT,
        "reward beats the base": all(draw["lm-reward"] > draw["lm"] for draw in plain),
        "reward beats fine-tuning": all(draw["lm-reward"] > draw["lm-narrow"] for draw in plain),
        "prompting gives most of it": all(d["recovered"] is not None and d["recovered"] >= MOST for d in behaviour),
        "reward keeps an advantage on deep paths": all(
            draw["lm-reward"] > max(draw["lm"], draw["lm-narrow"]) for draw in edges
        ),
    }


def _code_tree(seeds: range) -> dict[str, str]:
    """The experiment in the small: a tree of 27 leaves, learnt by statements, then by answers to questions alone."""
    rows = [_one_tree(seed) for seed in seeds]
    return {f"code tree: {name}": _range([row[name] for row in rows]) for name in rows[0]}


def _one_tree(seed: int) -> dict[str, float]:
    """Train a model of two blocks on a code tree, go on with a copy on questions only, and compare the two."""
    facts = [f"l{i} is in m{i // 3} is in r{i // 9}" for i in range(27)]
    queries = [f"what root has l{i} ?" for i in range(27)]
    answered = [f"{query} r{i // 9}" for i, query in enumerate(queries)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        before = _tree_model(facts + answered)
    # Three questions, one for each root, are part of the first training, so that it knows what a question is.
    _fit(before, facts + answered[::9], 600, 1e-3, only_last=False)
    after = ac.Model(copy.deepcopy(before.module), before.tokenizer, name="after")
    _fit(after, answered, 300, 3e-4, only_last=True)
    found = ac.compare.fact_query_gap(before, after, facts, queries)
    values = {
        f"right on {name}, {what}": _said(model, texts, places)
        for what, model in (("before", before), ("after", after))
        for name, texts, places in (("facts", facts, (4, 7)), ("questions", answered, (6,)))
    }
    values |= {
        f"gap{kind.replace('_', ', ')}, layer {layer}": float(found[f"gap{kind}"][layer])
        for kind in ("", "_centred")
        for layer in range(3)
    }
    return values | {
        f"lower end of the gap{kind.replace('_', ', ')}, layer 2": float(found[f"gap_low{kind}"][2])
        for kind in ("", "_centred")
    }


def _tree_model(texts: list[str]) -> ac.Model:
    """A random Llama of two blocks and width 64, with a token for every word."""
    words = ["<pad>", "<bos>", *sorted({word for text in texts for word in text.split()})]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(words), **sizes, max_position_embeddings=16, bos_token_id=1, pad_token_id=0)
    return ac.Model(LlamaForCausalLM(config).eval(), tokenizer, name="before")


def _fit(model: ac.Model, texts: list[str], steps: int, rate: float, only_last: bool) -> None:
    """Full-batch training on every next token, or on the last token of each text."""
    tokens = model.to_tokens(texts)
    targets = tokens.ids[:, 1:].clone()
    place = torch.arange(1, tokens.ids.shape[1])
    ends = tokens.mask.sum(1, keepdim=True) - 1
    targets[(place != ends) if only_last else (place > ends)] = -100
    optimiser = torch.optim.AdamW(model.module.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(steps):
        logits = model.logits(tokens)[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def _said(model: ac.Model, texts: list[str], places: tuple[int, ...]) -> float:
    """Share of the words at some places that are the most likely ones after what stands before them."""
    ids = model.to_tokens(texts).ids
    best = model.logits(texts).argmax(-1)
    return float(torch.stack([best[:, place - 1] == ids[:, place] for place in places]).float().mean())
