"""The LSTM cell and eight others that differ from it in one thing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, UnknownNameError, unknown

__all__ = ["LSTM_VARIANTS", "LSTMVariant"]

LSTM_VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        "V": "vanilla",
        "NIG": "no input gate: i = 1",
        "NFG": "no forget gate: f = 1",
        "NOG": "no output gate: o = 1",
        "NIAF": "no input activation function: g(x) = x",
        "NOAF": "no output activation function: h(x) = x",
        "CIFG": "coupled input and forget gate: f = 1 - i",
        "NP": "no peepholes",
        "FGR": "full gate recurrence: gates see all gates of the step before",
    }
)
"""The variants and what they are."""
SITES = ("i", "f", "o", "z", "c")
ABSENT = {"NIG": "i", "NFG": "f", "NOG": "o", "CIFG": "f"}
State = tuple[Tensor, ...]


class LSTMVariant(nn.Module):
    """One layer of an LSTM with peepholes, or of one of its variants.

    z = tanh(W_z x + R_z y' + b_z); i = s(W_i x + R_i y' + p_i c' + b_i); f = s(W_f x + R_f y' + p_f c' + b_f);
    c = z i + c' f; o = s(W_o x + R_o y' + p_o c + b_o); y = tanh(c) o, where s is the logistic function, products with
    p, i, f and o are elementwise, and ' is the step before. With FGR the gates i, f and o also get R (i', f', o').

    The rows of `weight`, `recurrent` and `bias` are z and the gates that there are, in the order z, i, f, o; the rows
    of `peephole` are these gates. Weights are drawn from a normal distribution of deviation 0.1, and biases are zero.

    Args:
        input_size: M.
        hidden: N.
        variant: a name in `LSTM_VARIANTS`.
        batch_first: sequences are (batch, time, M), else (time, batch, M).

    Attributes:
        gates: i, f, o, z and c of the last call, (batch, time, N) or (time, batch, N), without gradient. The same
            values pass the modules `sites.i` … `sites.c`, where `Model.record` reads them ("module:sites.f").

    Raises:
        UnknownNameError: there is no such variant.
        InputError: a size is not above 0.

    Source: Greff et al., 2015, section 2 and appendix A.
    """

    def __init__(self, input_size: int, hidden: int, variant: str = "V", batch_first: bool = True) -> None:
        super().__init__()
        if variant not in LSTM_VARIANTS:
            raise UnknownNameError(unknown("LSTM variant", str(variant), LSTM_VARIANTS))
        if input_size < 1 or hidden < 1:
            raise InputError(f"input_size and hidden must be above 0, got {input_size} and {hidden}")
        self.input_size, self.hidden, self.variant, self.batch_first = input_size, hidden, variant, batch_first
        self.names = tuple(g for g in "zifo" if g != ABSENT.get(variant))
        rows = len(self.names) * hidden
        self.weight = nn.Parameter(torch.empty(rows, input_size))
        self.recurrent = nn.Parameter(torch.empty(rows, hidden))
        self.bias = nn.Parameter(torch.empty(rows))
        self.peephole = nn.Parameter(torch.empty(len(self.names) - 1, hidden)) if variant != "NP" else None
        self.gate_recurrent = nn.Parameter(torch.empty(3 * hidden, 3 * hidden)) if variant == "FGR" else None
        self.sites = nn.ModuleDict({name: nn.Identity() for name in SITES})
        self.gates: dict[str, Tensor] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.1)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Sizes and variant."""
        return f"{self.input_size}, {self.hidden}, variant={self.variant!r}"

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run over sequences.

        Args:
            x: (batch, time, M), or (time, batch, M) without `batch_first`.
            state: what an earlier call returned, to go on; zeros by default.

        Returns:
            outputs y like x with N in place of M, and the state (y, c), (batch, N) each, of the last step; with FGR it
            has the gates (batch, 3 N) too.

        Raises:
            InputError: another shape, no steps, NaN or infinite inputs, or a state of another shape.
        """
        self._check(x, state)
        steps = (x.transpose(0, 1) if self.batch_first else x) @ self.weight.mT + self.bias
        batch = steps.shape[1]
        if state is None:
            state = tuple(steps.new_zeros(batch, size) for size in self._state_sizes())
        # Views of the weights are taken once: each of them would be a node of the graph at every step.
        peephole = {} if self.peephole is None else dict(zip(self.names[1:], self.peephole.unbind(0), strict=True))
        views = (self.recurrent.mT, peephole, None if self.gate_recurrent is None else self.gate_recurrent.mT)
        kept: list[tuple[Tensor, ...]] = []
        for now in steps.unbind(0):
            state, seen = self._step(now, state, *views)
            kept.append((state[0], *seen))
        along = 1 if self.batch_first else 0
        y, *gates = (torch.stack(values, along) for values in zip(*kept, strict=True))
        self.gates = {name: self.sites[name](g).detach() for name, g in zip(SITES, gates, strict=True)}
        return y, state

    def _step(
        self, now: Tensor, state: State, recurrent: Tensor, peephole: Mapping[str, Tensor], between: Tensor | None
    ) -> tuple[State, tuple[Tensor, ...]]:
        """One step; `now` (batch, rows) is W x + b."""
        y, c = state[:2]
        parts = dict(zip(self.names, torch.addmm(now, y, recurrent).chunk(len(self.names), dim=-1), strict=True))
        if between is not None:
            more = (state[2] @ between).chunk(3, dim=-1)
            parts |= {g: parts[g] + part for g, part in zip("ifo", more, strict=True)}

        def gate(name: str, cell: Tensor) -> Tensor:
            if name not in parts:
                return torch.ones_like(cell)
            peeps = peephole.get(name)
            return torch.sigmoid(parts[name] if peeps is None else torch.addcmul(parts[name], peeps, cell))

        z = parts["z"] if self.variant == "NIAF" else parts["z"].tanh()
        i = gate("i", c)
        f = 1 - i if self.variant == "CIFG" else gate("f", c)
        c = torch.addcmul(z * i, c, f)
        o = gate("o", c)
        y = (c if self.variant == "NOAF" else c.tanh()) * o
        gates = (torch.cat([i, f, o], dim=-1),) if self.variant == "FGR" else ()
        return (y, c, *gates), (i, f, o, z, c)

    def _state_sizes(self) -> tuple[int, ...]:
        return (self.hidden, self.hidden, 3 * self.hidden) if self.variant == "FGR" else (self.hidden, self.hidden)

    def _check(self, x: Tensor, state: State | None) -> None:
        order = "(batch, time, {})" if self.batch_first else "(time, batch, {})"
        if x.ndim != 3 or x.shape[-1] != self.input_size or not x.numel():
            raise InputError(f"sequences are {order.format(self.input_size)}, got {tuple(x.shape)}")
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            raise InputError("sequences hold finite floating-point numbers")
        if state is not None:
            wanted = [(x.shape[0 if self.batch_first else 1], size) for size in self._state_sizes()]
            got = [tuple(part.shape) for part in state]
            if got != wanted:
                raise InputError(f"the state of {self.variant} has the shapes {wanted}, got {got}")
