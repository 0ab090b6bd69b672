"""Several processes that train one dictionary, started by `torchrun`: each has a share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

__all__ = ["Team"]


class Team:
    """The processes of this run: one, if it was not started by `torchrun`.

    Attributes:
        rank, size: of this process, and how many there are.
    """

    def __init__(self, device: torch.device) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._started = False
        if self.size > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            self._started = True

    @property
    def first(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of a batch."""
        return rows[self.rank :: self.size]

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the mean over processes in the place of every gradient."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            grad = parameter.grad
            # Transposed weights have transposed gradients, which the backend would refuse.
            flat = grad if grad.is_contiguous() else grad.T
            distributed.all_reduce(flat)
            flat.div_(self.size)

    def agree(self, buffers: Iterable[Tensor]) -> None:
        """Put the mean over processes in the place of what each keeps of its own rows, such as a running threshold."""
        if self.size > 1:
            for buffer in buffers:
                distributed.all_reduce(buffer)
                buffer.div_(self.size)

    def add(self, counts: Tensor) -> Tensor:
        """The sum over processes."""
        if self.size > 1:
            distributed.all_reduce(counts)
        return counts

    def close(self) -> None:
        """Leave."""
        if self._started:
            distributed.destroy_process_group()
