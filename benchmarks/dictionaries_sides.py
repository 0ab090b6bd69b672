"""A dictionary's training step as it is here and in other libraries, from the same weights, and rows to train on.

All step Adam at one rate. All but sparsify clip gradients at 1; those of SAELens rank and weigh by decoder norms, the
others constrain them, as is the default of each. sparsify has no JumpReLU; it computes in float32 as the others do, and
on a processor through what it has in place of its kernels. `use_sparse_activations` of SAELens is left out: backward it
fails on a processor.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import actinium as ac
from actinium.features.training.data import Rows
from actinium.features.training.distributed import Team
from actinium.features.training.trainer import Run

__all__ = ["L0", "LEARNING", "LENS", "OURS", "SPARSIFY", "first", "side", "sizes", "superposed"]

OURS, LENS, LEARNING, SPARSIFY = "actinium", "SAELens", "dictionary_learning", "sparsify"
RATE = 3e-4
L0 = 32
Step = Callable[[Tensor], Any]


def sizes(tiny: bool) -> tuple[int, int, int]:
    """Width, latents, and rows of a batch."""
    return (16, 256, 64) if tiny else (768, 16384, 2048)


def superposed(d: int, m: int, n: int) -> Tensor:
    """Rows (n, d) that are sums of few of m directions, of different frequencies."""
    random = torch.Generator().manual_seed(0)
    directions = torch.randn(m, d, generator=random)
    directions = directions / directions.norm(dim=1, keepdim=True)
    out = torch.zeros(n, d)
    for _ in range(L0):
        # The smaller of two draws is drawn more often the smaller it is.
        chosen = torch.randint(m, (2, n), generator=random).amin(0)
        out += (0.5 + torch.rand(n, 1, generator=random)) * directions[chosen]
    return out.to("cuda" if torch.cuda.is_available() else "cpu")


def first(architecture: str, d: int, m: int, data: Tensor) -> Any:
    """The dictionary that all sides begin as."""
    mine = ac.features.TopKSAE(m, L0) if architecture == "TopK" else ac.features.JumpReLUSAE(m, 1e-3, theta=1.0)
    mine.build(d).to(data.device)
    if architecture == "JumpReLU":
        # The threshold that L0 latents pass at the start.
        with torch.no_grad():
            pre = mine.pre(data[:1024])
            mine.rule.theta.fill_(float(pre.flatten().topk(L0 * len(pre)).values[-1]))
    return mine


def side(name: str, architecture: str, mine: Any, data: Tensor) -> tuple[Step, Step]:
    """A training step of one side, and its reconstruction, from the weights of ours, which its own step changes."""
    if name == OURS:
        return _ours(mine, data)
    return {LENS: _lens, LEARNING: _learning, SPARSIFY: _sparsify}[name](architecture, mine)


def _ours(mine: Any, data: Tensor) -> tuple[Step, Step]:
    config = ac.features.TrainConfig(lr=RATE, warmup=0, schedule="constant", sparsity_warmup=0.0, sample=1024)
    run, team = Run(mine, config, Rows([data]), data.device), Team(data.device)

    def step(x: Tensor) -> None:
        run.accumulate(x, None, 1.0, team)
        run.step(1.0, team)

    return step, lambda x: mine(x).xhat


def _lens(architecture: str, mine: Any) -> tuple[Step, Step]:
    lens: Any = importlib.import_module("sae_lens")
    training: Any = importlib.import_module("sae_lens.training.sae_trainer")
    config: Any = importlib.import_module("sae_lens.config")
    device = str(mine.W_enc.device)
    sizes = {"d_in": mine.d_in, "d_sae": mine.d_sae, "apply_b_dec_to_input": True, "device": device}
    if architecture == "TopK":
        sae = lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(k=L0, **sizes))
    else:
        own = {"l0_coefficient": 1e-3, "jumprelu_init_threshold": float(mine.rule.theta.detach()[0])}
        sae = lens.JumpReLUTrainingSAE(lens.JumpReLUTrainingSAEConfig(**own, **sizes))
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(sae, name).copy_(getattr(mine, name))
    rates = {"lr": RATE, "lr_end": RATE, "device": device}
    settings = config.SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=4096, **rates)
    trainer = training.SAETrainer(settings, sae, iter(()))
    return lambda x: trainer._train_step(sae, x), lambda x: sae(x)


def _learning(architecture: str, mine: Any) -> tuple[Step, Step]:
    module = "top_k" if architecture == "TopK" else "jumprelu"
    trainers: Any = importlib.import_module(f"dictionary_learning.trainers.{module}")
    common = {"activation_dim": mine.d_in, "dict_size": mine.d_sae, "layer": 0, "lm_name": "none"}
    common |= {"steps": 10**6, "lr": RATE, "warmup_steps": 0, "device": str(mine.W_enc.device)}
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


def _sparsify(architecture: str, mine: Any) -> tuple[Step, Step]:
    """The step as it stands in its trainer, which itself trains on a language model alone."""
    if not torch.cuda.is_available():
        # It decodes through Triton wherever that is installed.
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    library: Any = importlib.import_module("sparsify")
    sae = library.SparseCoder(mine.d_in, library.SparseCoderConfig(num_latents=mine.d_sae, k=L0), mine.W_enc.device)
    with torch.no_grad():
        for own, value in (
            (sae.encoder.weight, mine.W_enc.T),
            (sae.encoder.bias, mine.b_enc),
            (sae.W_dec, mine.W_dec),
            (sae.b_dec, mine.b_dec),
        ):
            own.copy_(value)
    # On a GPU the method is wrapped so that it computes in bfloat16.
    forward = partial(inspect.unwrap(type(sae).forward), sae)
    optimizer = torch.optim.Adam(sae.parameters(), RATE)

    def step(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        forward(x, total_variance=(x - x.mean(0)).pow(2).sum()).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step, lambda x: forward(x).sae_out
