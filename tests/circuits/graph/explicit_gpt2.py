"""GPT-2 written out with an input of its own for every receiver, so that edges are defined by what it computes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from actinium.circuits.graph.layout import Layout


class Explicit:
    """The mathematics of a GPT-2 module, in the precision of its weights.

    Args:
        module: a `GPT2LMHeadModel`.
    """

    def __init__(self, module) -> None:
        self.module, config = module, module.config
        self.layout = Layout(config.n_layer, config.n_head)
        self.width = config.n_embd

    def run(self, ids: Tensor, mask: Tensor, inputs=None, outputs=None, start=None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits after the last token, outputs (sender, row, pos, d) and inputs (receiver, row, pos, d) of the parts.

        Args:
            ids, mask: (row, pos).
            inputs: called with a receiver's number and its input; what it returns is read instead.
            outputs: called with a sender's number and its output.
            start: in place of the embeddings.
        """
        module, layout = self.module.transformer, self.layout
        places = (mask.long().cumsum(1) - 1).clamp_min(0)
        positions = module.wpe(places)
        first = module.wte(ids) if start is None else start
        inputs = inputs or (lambda r, x: x)
        outputs = outputs or (lambda s, x: x)
        sent, seen, biases = [outputs(0, first)], [], [positions]

        def read(reader: int, n: int) -> Tensor:
            x = inputs(reader, sum(sent[:n]) + sum(biases))
            seen.append(x)
            return x

        reader = 0
        for block in module.h:
            below, normed = len(sent), []
            for _ in range(3 * layout.n_heads):
                normed.append(block.ln_1(read(reader, below)))
                reader += 1
            sent += [outputs(len(sent) + h, z) for h, z in enumerate(self._attention(block.attn, normed, mask))]
            biases.append(block.attn.c_proj.bias)
            x = block.ln_2(read(reader, len(sent)))
            reader += 1
            sent.append(outputs(len(sent), block.mlp(x)))
        last = read(reader, len(sent))
        logits = self.module.lm_head(module.ln_f(last))[:, -1]
        return logits, torch.stack(sent), torch.stack(seen)

    def _attention(self, attn, normed: list[Tensor], mask: Tensor) -> list[Tensor]:
        heads, size = self.layout.n_heads, self.width // self.layout.n_heads
        n = mask.shape[1]
        allowed = torch.ones(n, n, dtype=torch.bool).tril() & mask[:, None]
        allowed = allowed | torch.eye(n, dtype=torch.bool)  # rows of padding look at themselves
        out = []
        for h in range(heads):
            q, k, v = (
                normed[kind * heads + h] @ attn.c_attn.weight[:, kind * self.width + h * size :][:, :size]
                + attn.c_attn.bias[kind * self.width + h * size :][:size]
                for kind in range(3)
            )
            scores = (q @ k.transpose(1, 2) / size**0.5).masked_fill(~allowed, -1e30)
            out.append(F.softmax(scores, -1) @ v @ attn.c_proj.weight[h * size : (h + 1) * size])
        return out

    def gradients(self, ids: Tensor, mask: Tensor, metric, outputs=None, start=None) -> Tensor:
        """(receiver, row, pos, d): gradient of the summed metric at each receiver's own input."""
        shape = (len(self.layout.receivers), *ids.shape, self.width)
        moves = torch.zeros(shape, dtype=self.module.dtype).requires_grad_()
        logits, _, _ = self.run(ids, mask, lambda r, x: x + moves[r], outputs, start)
        return torch.autograd.grad(metric(logits).sum(), moves)[0]

    def scores(self, step: Tensor, gradient: Tensor, mask: Tensor) -> Tensor:
        """(edge,): <step of the sender, gradient at the receiver>, summed over real positions, mean over rows."""
        full = torch.einsum("sbpd,rbpd,bp->sr", step, gradient, mask.to(step)) / len(mask)
        return self.layout.vector(full)
