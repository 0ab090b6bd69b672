"""Brock, De and Smith, 2021: what signal propagation plots show, and residual networks without normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    54,
    claim=(
        "At the start a residual network with batch norm has a variance that grows in proportion to depth; without it "
        "and with He's weights channel means grow and branches fade; with scaled weight standardisation and analytic "
        "scales neither happens, and such a network trains to an accuracy near that of the normalised one."
    ),
)
CLAIMED = (
    "In un-normalised ReLU and Swish ResNets the mean shift and the decay of the residual branch go with scaled weight "
    "standardisation; the resulting networks match or beat batch-normalised ResNets on ImageNet over a range of "
    "computational budgets (abstract, sections 3 and 4, table 1)."
)
BLOCKS, CHANNELS, SIZE, ALPHA = 12, 64, 12, 0.2
LINEAR, SHIFT, NO_SHIFT, FADED, KEPT, ACCURACY = 0.95, 0.05, 0.01, 0.6, 0.05, 0.02
NETWORKS = ("batch norm", "He", "scaled WS", "scaled WS, circular")
VALUES = ("squared_mean", "variance", "residual_variance")


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Plot four networks of 12 blocks of two 3 x 3 convolutions at their start, and train two on handwritten digits.

    The inputs of the plots are standard normal images of 12 x 12 pixels and 64 channels. The claim holds if (1) with
    batch norm a line through depth explains 95 % of the variance's change; (2) after the last block the squared channel
    mean is 5 % of the variance or more with He's weights and 1 % or less with scaled weight standardisation (zero
    padding in both); (3) the last branch has a variance of 0.6 or less with He's weights, and with circular padding, as
    zero padding takes some of it away, every branch is within 5 % of 1 with scaled weight standardisation; (4) the
    variance is then within 5 % of the calculated one after every block; (5) the mean test accuracy of the NF-ResNet is
    at most 2 points below that of the same network with batch norm.

    Args:
        seed: the first of the seeds of weights and noise.
        model: not used: the experiment makes its own networks.
        quick: one seed, 16 images and trainings of 4 epochs instead of five seeds, 64 images and 20 epochs.

    Raises:
        InputError: a model is given.
        MissingExtraError: scikit-learn is not installed.
    """
    if model is not None:
        raise InputError("this experiment makes its own networks; for yours use ac.signal.signal_propagation_plot")
    seeds = range(seed, seed + (1 if quick else 5))
    found = np.array([[_plotted(kind, s, 16 if quick else 64) for kind in NETWORKS] for s in seeds])
    mean = {v: found[:, :, i].mean(0) for i, v in enumerate(VALUES)}  # network x depth
    expected = np.array(ac.signal.expected_variance([BLOCKS], ALPHA, at="output"))
    shift = mean["squared_mean"][:, -1] / mean["variance"][:, -1]
    depth = np.arange(BLOCKS + 1)
    linear = float(np.corrcoef(depth, mean["variance"][0])[0, 1] ** 2)
    off = float(np.abs(mean["variance"][3, 1:] / expected - 1).max())
    measured: dict[str, Any] = {}
    for i, kind in enumerate(NETWORKS):
        measured |= {f"{kind}: {v} at the end": float(mean[v][i, -1]) for v in VALUES}
    accuracy = {k: [_accuracy(k, s, 4 if quick else 20) for s in seeds] for k in TRIED}
    gap = float(np.mean(accuracy["NF-ResNet"]) - np.mean(accuracy["batch norm"]))
    measured |= {
        "batch norm: share of the variance that a line explains": linear,
        "He: squared mean by variance": float(shift[1]),
        "scaled WS: squared mean by variance": float(shift[2]),
        "scaled WS, circular: largest relative distance from the calculated variance": off,
        **{f"{k}: test accuracy": float(np.mean(values)) for k, values in accuracy.items()},
        "NF-ResNet less batch norm (accuracy)": gap,
    }
    branch = mean["residual_variance"]
    parts: dict[str, bool | None] = {
        "the variance grows in proportion to depth with batch norm": linear >= LINEAR,
        "means shift with He's weights and not with scaled WS": shift[1] >= SHIFT and shift[2] <= NO_SHIFT,
        "branches fade with He's weights and not with scaled WS": branch[1, -1] <= FADED
        and float(np.abs(branch[3, 1:] - 1).max()) <= KEPT,
        "the variance is the calculated one": off <= KEPT,
        "the network trains as well": gap >= -ACCURACY,
    }
    measured |= claims_of(parts)
    data = xr.Dataset(
        {v: (("network", "depth"), mean[v]) for v in VALUES[1:] + VALUES[:1]},
        {"network": list(NETWORKS), "depth": depth},
    )
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Random weights and noise for the plots; for accuracy, scikit-learn's digits of 8 x 8 pixels, four blocks "
            "of 16 and 32 channels, Adam, no augmentation. ImageNet, EfficientNets, budgets and deep networks are not "
            "examined. Trainings of four epochs, as in a quick run, compare how fast networks learn at first more than "
            "what they reach."
        ),
        result=ac.Result(data, "signal_propagation_plot", PAPER.slug),
        settings={"seeds": len(seeds), "first seed": seed, "blocks": BLOCKS, "channels": CHANNELS, "alpha": ALPHA},
    )


class _Block(nn.Module):
    """x + alpha f(x / beta) with batch norm (alpha and beta 1) or with He's weights, two 3 x 3 convolutions."""

    def __init__(self, before: int, after: int, norm: bool, beta: float = 1.0, stride: int = 1) -> None:
        super().__init__()
        self.alpha, self.beta = (1.0, 1.0) if norm else (ALPHA, beta)
        first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        for conv in (first, second):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.entry = nn.Sequential(nn.BatchNorm2d(before) if norm else nn.Identity(), nn.ReLU())
        between = nn.BatchNorm2d(after) if norm else nn.Identity()
        self.branch = nn.Sequential(first, between, nn.ReLU(), second)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 or before != after else None

    def forward(self, x: Tensor) -> Tensor:
        scaled = self.entry(x / self.beta)
        kept = x if self.shortcut is None else self.shortcut(scaled)
        return kept + self.alpha * self.branch(scaled)


def _plotted(kind: str, seed: int, rows: int) -> np.ndarray:
    """(value, depth) of one network; the branch's variance at depth 0 is NaN."""
    torch.manual_seed(seed)
    betas = [v**0.5 for v in ac.signal.expected_variance([BLOCKS], ALPHA)]
    if kind.startswith("scaled WS"):
        padding = "circular" if kind.endswith("circular") else "zeros"
        blocks: list[nn.Module] = [
            ac.signal.NFResNetBlock(
                CHANNELS, CHANNELS, beta=b, alpha=ALPHA, bottleneck=None, padding_mode=padding, transition=False
            )
            for b in betas
        ]
    else:
        blocks = [_Block(CHANNELS, CHANNELS, kind == "batch norm", b) for b in betas]
    net = nn.Sequential(*blocks).train()
    shape = (CHANNELS, SIZE, SIZE)
    plot = ac.signal.signal_propagation_plot(net, input_shape=shape, rows=rows, seed=seed)
    return np.array([plot[v].values for v in VALUES])


TRIED = ("NF-ResNet", "batch norm")


def _accuracy(kind: str, seed: int, epochs: int) -> float:
    """Test accuracy on digits after training."""
    torch.manual_seed(seed)
    widths = (16, 32)
    if kind == "NF-ResNet":
        net: nn.Module = ac.signal.nf_resnet("small", depths=(2, 2), widths=widths, in_channels=1)
    else:
        blocks = [_Block(16, 16, True), _Block(16, 16, True), _Block(16, 32, True, stride=2), _Block(32, 32, True)]
        end = (nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
        net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), *blocks, *end)
    train, test = ac.world.digits.load("train"), ac.world.digits.load("test")
    optimiser = torch.optim.Adam(ac.signal.decay_groups(net, 0.0), lr=3e-3)
    random = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(train), generator=random).split(64):
            # The digits have a mean of 0.3; networks are made for centred inputs.
            loss = nn.functional.cross_entropy(net(2 * train.images[rows] - 0.6), train.labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        return float((net.eval()(2 * test.images - 0.6).argmax(1) == test.labels).double().mean())
