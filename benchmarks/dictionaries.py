"""A training step of a sparse dictionary beside the same step of SAELens and of dictionary_learning.

All sides begin with the same weights, read the same batches, clip gradients at 1 and step Adam at one rate. Those of
SAELens rank and weigh by decoder norms, the others constrain them, as is each one's default. Left out:
`use_sparse_activations` of SAELens, whose backward pass fails on a processor, and sparsify, which needs a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import actinium as ac
from actinium.features.training.data import Rows
from actinium.features.training.distributed import Team
from actinium.features.training.trainer import Run
from benchmarks.page import alone
from benchmarks.paired import Goal, Ratio, Row, agree, interleave
from benchmarks.peers import optional
from benchmarks.settings import Settings

__all__ = ["rows"]

OURS, PRODUCT = "actinium", "the encoder's product alone"
LENS, LEARNING = "SAELens", "dictionary_learning"
RATE = 3e-4
L0 = 32
Step = Callable[[Tensor], Any]


def rows(settings: Settings) -> list[Row]:
    """How many times faster a step is than each peer's, and what was learnt after as many steps."""
    d, m, batch = (16, 256, 64) if settings.tiny else (768, 16384, 2048)
    steps = 4 if settings.tiny else 24
    table = []
    data = _superposed(d, 4 * m, 8 * batch)
    for architecture, goal in (("TopK", 3.0), ("JumpReLU", 2.0)):
        mine, sides = _sides(architecture, d, m, data, steps)
        check = data[:batch]
        with torch.no_grad():
            for name, (_, xhat) in sides.items():
                agree(f"{architecture}, {name}, reconstruction", xhat(check), sides[OURS][1](check), 1e-3)
        steppers: dict[str, Step] = {name: step for name, (step, _) in sides.items()}
        steppers[PRODUCT] = partial(torch.matmul, other=mine.W_enc.detach())
        runs = {name: partial(_turn, step, _batches(data, batch)) for name, step in steppers.items()}
        times = interleave(runs, settings.repeats(steps), settings.clock, f"{architecture}, {d} x {m}")
        what = f"training step, {architecture}, {d} x {m:,} latents, {batch:,} rows, L0 {L0}"
        found = [n for n in sides if n != OURS]
        for name in found:
            table.append(Row(f"{what}: times faster", name, Ratio.of(times[name], times[OURS]), Goal(">=", goal)))
        for name in {LENS, LEARNING} - set(found):
            table.append(Row(f"{what}: times faster", name, "not installed", Goal(">=", goal)))
        table.append(Row(f"{what}: time / bound", PRODUCT, Ratio.of(times[OURS], times[PRODUCT])))
        for name, (_, xhat) in sides.items():
            with torch.no_grad():
                share = 1 - float((check - xhat(check)).square().sum() / (check - check.mean(0)).square().sum())
            table.append(Row(f"explained variance after these steps, {architecture}", name, f"{share:.3f}"))
    return table


def _turn(step: Step, batches: Iterator[Tensor]) -> None:
    step(next(batches))


def _superposed(d: int, m: int, n: int) -> Tensor:
    """Rows (n, d) that are sums of few of m directions, of different frequencies."""
    random = torch.Generator().manual_seed(0)
    directions = torch.randn(m, d, generator=random)
    directions = directions / directions.norm(dim=1, keepdim=True)
    out = torch.zeros(n, d)
    for _ in range(L0):
        # The smaller of two draws is drawn more often the smaller it is.
        chosen = torch.randint(m, (2, n), generator=random).amin(0)
        out += (0.5 + torch.rand(n, 1, generator=random)) * directions[chosen]
    return out


def _batches(data: Tensor, batch: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(1)
    while True:
        yield from data[torch.randperm(len(data), generator=random)].split(batch)


def _sides(architecture: str, d: int, m: int, data: Tensor, steps: int) -> tuple[Any, dict[str, tuple[Step, Step]]]:
    """Our dictionary, and for each side a training step and the reconstruction."""
    features = ac.features
    mine = features.TopKSAE(m, L0) if architecture == "TopK" else features.JumpReLUSAE(m, 1e-3, theta=1.0)
    config = features.TrainConfig(lr=RATE, warmup=0, schedule="constant", sparsity_warmup=0.0, sample=1024)
    run, team = Run(mine, config, Rows([data]), torch.device("cpu")), Team(torch.device("cpu"))
    if architecture == "JumpReLU":
        # The threshold that L0 latents pass at the start.
        with torch.no_grad():
            pre = mine.pre(data[:1024])
            mine.rule.theta.fill_(float(pre.flatten().topk(L0 * len(pre)).values[-1]))

    def ours(x: Tensor) -> None:
        run.accumulate(x, None, 1.0, team)
        run.step(1.0, team)

    sides: dict[str, tuple[Step, Step]] = {OURS: (ours, lambda x: mine(x).xhat)}
    if optional("sae_lens") is not None:
        sides[LENS] = _lens(architecture, mine)
    if optional("dictionary_learning") is not None:
        sides[LEARNING] = _learning(architecture, mine, steps)
    return mine, sides


def _lens(architecture: str, mine: Any) -> tuple[Step, Step]:
    lens: Any = importlib.import_module("sae_lens")
    training: Any = importlib.import_module("sae_lens.training.sae_trainer")
    config: Any = importlib.import_module("sae_lens.config")
    sizes = {"d_in": mine.d_in, "d_sae": mine.d_sae, "apply_b_dec_to_input": True}
    if architecture == "TopK":
        sae = lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(k=L0, **sizes))
    else:
        own = {"l0_coefficient": 1e-3, "jumprelu_init_threshold": float(mine.rule.theta.detach()[0])}
        sae = lens.JumpReLUTrainingSAE(lens.JumpReLUTrainingSAEConfig(**own, **sizes))
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(sae, name).copy_(getattr(mine, name))
    rows = 10**9
    trainer = training.SAETrainer(
        config.SAETrainerConfig(total_training_samples=rows, train_batch_size_samples=4096, lr=RATE, lr_end=RATE),
        sae,
        iter(()),
    )
    return lambda x: trainer._train_step(sae, x), lambda x: sae(x)


def _learning(architecture: str, mine: Any, steps: int) -> tuple[Step, Step]:
    module = "top_k" if architecture == "TopK" else "jumprelu"
    trainers: Any = importlib.import_module(f"dictionary_learning.trainers.{module}")
    common = {"activation_dim": mine.d_in, "dict_size": mine.d_sae, "layer": 0, "lm_name": "none", "device": "cpu"}
    common |= {"steps": 10**6, "lr": RATE, "warmup_steps": 0}
    if architecture == "TopK":
        trainer = trainers.TopKTrainer(k=L0, **common)
        with torch.no_grad():
            trainer.ae.encoder.weight.copy_(mine.W_enc.T)
            trainer.ae.encoder.bias.copy_(mine.b_enc)
            trainer.ae.decoder.weight.copy_(mine.W_dec.T)
            trainer.ae.b_dec.copy_(mine.b_dec)
    else:
        trainer = trainers.JumpReluTrainer(sparsity_penalty=1e-3, sparsity_warmup_steps=0, **common)
        with torch.no_grad():
            for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
                getattr(trainer.ae, name).copy_(getattr(mine, name))
            trainer.ae.threshold.copy_(mine.rule.theta)
    # Step 0 would measure a bias; the others begin without.
    count = iter(range(1, 10**9))
    return lambda x: trainer.update(next(count), x), lambda x: trainer.ae(x)


if __name__ == "__main__":
    alone(rows, __doc__)
