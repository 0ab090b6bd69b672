"""One run of some prompts taken apart: what every unit wrote, and how logits read it with the final norm held."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from actinium.circuits.knowledge.encoding import Prompt, PromptBatch
from actinium.circuits.knowledge.weights import check_writes, down_projections
from actinium.circuits.patching.norms import ScaleWatch
from actinium.circuits.patching.readout import held_readout, without_cap
from actinium.core.edits import Add
from actinium.core.errors import InputError
from actinium.core.maps import weight_after
from actinium.core.model import Model

__all__ = ["Trace", "Traces"]

# Share of the size of the logits by which the read-out may miss them.
TOLERANCE = 1e-3
# Entries of a piece of logits.
PIECE = 1 << 24


class Traces:
    """A recorded run of prompts, by row.

    Args:
        model: a causal language model.
        prompts: the prompts.
        targets: token ids whose log-probabilities are explained, or None for the most likely ones.
        attention: record what single attention heads did as well.

    Raises:
        InputError: blocks do not add what their parts write to the stream as it is; logits are read in a way that is
            not known; what an MLP reads is not known.
    """

    def __init__(self, model: Model, prompts: list[Prompt], targets: list[int] | None, attention: bool) -> None:
        self.model, self.prefix = model, model.tower.prefix
        self.batch = PromptBatch(model, prompts)
        self.keys: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self.downs = down_projections(model, range(model.n_layers))
        check_writes(model, self.downs, self.batch.inputs)
        self.parallel = not model.has(f"{self.prefix}blocks.*.resid_mid")
        if self.parallel and model.family is None:
            raise InputError(
                f"{model.name} is no known family: whether its MLP reads what attention wrote is not known"
            )
        parts = ["resid_pre", "attn.out", "mlp.post", "mlp.out"] + ([] if self.parallel else ["resid_mid"])
        parts += ["attn.z", "attn.v", "attn.pattern"] if attention else []
        last = f"blocks.{model.n_layers - 1}.resid_post"
        with torch.no_grad():
            self.rec = model.record(
                self.batch.inputs, [*(f"{self.prefix}blocks.*.{p}" for p in parts), self.prefix + last, "logits"]
            )
        logits = self.rec["logits"][torch.arange(len(prompts)), self.batch.last[:, 0]]
        self.targets = logits.argmax(-1).tolist() if targets is None else targets
        self.rows = [Trace(self, i, logits[i]) for i in range(len(prompts))]

    def site(self, layer: int, part: str) -> str:
        """Name of a site of a block."""
        return f"{self.prefix}blocks.{layer}.{part}"

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.model.n_layers

    def values(self, layer: int) -> Tensor:
        """(unit, d_model): what a unit of an MLP writes where it is 1."""
        return self.downs[layer].weight

    def head_values(self, layer: int) -> Tensor:
        """(head, d_head, d_model): what a unit of attention writes where it is 1."""
        return weight_after(self.model, self.site(layer, "attn.z")).T.unflatten(0, (self.model.tower.heads, -1))

    @cached_property
    def linear(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By site of a block's values and MLP inputs: them, and the zero added to the stream that they read.

        The scales of norms are constants for the gradients, so these are the linear maps from the stream.
        """
        zeros: dict[str, Tensor] = {}
        reads: dict[str, str] = {}
        for layer in range(self.n_layers):
            for part in ("attn.v", "mlp.pre"):
                if self.model.has(self.site(layer, part)):
                    middle = part == "mlp.pre" and not self.parallel
                    reads[self.site(layer, part)] = self.site(layer, "resid_mid" if middle else "resid_pre")
        for site in reads.values():
            zeros[site] = torch.zeros_like(self.rec[site]).requires_grad_()
        with torch.enable_grad(), ScaleWatch(torch.detach), self.model.edit({s: Add(z) for s, z in zeros.items()}):
            rec = self.model.record(self.batch.inputs, list(reads), grad=True)
        return {site: (rec[site], zeros[stream]) for site, stream in reads.items()}


class Trace:
    """The run of one prompt.

    Args:
        traces: the run of all.
        row: its row.
        logits: (d_vocab,) after its last token.
    """

    def __init__(self, traces: Traces, row: int, logits: Tensor) -> None:
        self.traces, self.row, self.target = traces, row, traces.targets[row]
        self.last = int(traces.batch.last[row])
        stream = self.at(traces.n_layers - 1, "resid_post")
        whole = held_readout(traces.model, stream[None], uncapped=True)
        constant = whole(torch.zeros_like(stream)[None])[0]
        self.read: Callable[[Tensor], Tensor] = lambda x: whole(x) - constant
        if not 0 <= self.target < len(logits):
            raise InputError(f"token ids go from 0 to {len(logits) - 1}, not {self.target}")
        wanted = without_cap(traces.model, logits)
        missed = float((self.read(stream[None])[0] + constant - wanted).abs().max() / wanted.abs().max())
        if missed > max(TOLERANCE, 4 * torch.finfo(logits.dtype).eps):
            raise InputError(
                f"final norm and unembedding of {traces.model.name} do not give its logits (off by {missed:.1%}): what "
                "stands between them is not known"
            )

    def at(self, layer: int, part: str, position: int | None = None) -> Tensor:
        """What was recorded at a position, the last one of the prompt by default."""
        found: Tensor = self.traces.rec[self.traces.site(layer, part)][self.row]
        return found[self.last if position is None else position]

    def before(self, layer: int, part: str, position: int | None = None) -> Tensor:
        """The residual stream (d_model,) that "attn" or "mlp" of a block reads."""
        middle = part == "mlp" and not self.traces.parallel
        return self.at(layer, "resid_mid" if middle else "resid_pre", position)

    def increase(self, base: Tensor, writes: Tensor) -> Tensor:
        """log p(target | base + write) - log p(target | base) for writes (..., d_model), float32.

        Exactly 0 for a write of zero.
        """
        flat = writes.reshape(-1, writes.shape[-1])
        start = torch.log_softmax(self.read(base[None]), -1)[0, self.target]
        size = max(1, PIECE // max(1, int(self.traces.model.config.vocab_size)))
        found = [torch.log_softmax(self.read(base + piece), -1)[:, self.target] - start for piece in flat.split(size)]
        out = torch.where((flat == 0).all(-1), 0.0, torch.cat(found))
        return out.view(writes.shape[:-1])

    def attention_units(self, layer: int) -> Tensor:
        """(pos, head, d_head): what single units of heads bring from each position to the last one."""
        pattern = self.traces.rec[self.traces.site(layer, "attn.pattern")][self.row, :, self.last, : self.last + 1]
        value = self.traces.rec[self.traces.site(layer, "attn.v")][self.row, : self.last + 1]
        shared = pattern.shape[0] // value.shape[1]
        return pattern.T[:, :, None] * value.repeat_interleave(shared, 1)

    def key(self, site: str, position: int, unit: tuple[int, ...]) -> tuple[Tensor, float]:
        """The linear map (d_model,) from the stream at a position to a value or MLP input there, and that input.

        The map is right up to a factor above 0: the scale of its norm differs between positions.
        """
        whole, zero = self.traces.linear[site]
        number = whole[(self.row, position, *unit)]
        known = self.traces.keys
        if (site, unit) not in known:
            (gradient,) = torch.autograd.grad(number, zero, retain_graph=True)
            known[site, unit] = gradient[self.row, position]
        return known[site, unit], float(number.detach())
