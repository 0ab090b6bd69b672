"""A compiled model together with what is known about it: its program, its circuit and a task that needs all of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["Compiled"]

Tokens = list[str]


@dataclass(frozen=True, eq=False)
class Compiled:
    """A transformer with hand-set weights, its program and its circuit.

    Edges have the names of `actinium.circuits.graph`: "a0.h2->a1.h1<k>", "input->a0.h2<v>", "a1.h1->logits".

    Attributes:
        name: of the program.
        model: the transformer.
        program: the same in Python: the tokens of a prompt without `<bos>` to the answer.
        edges: what carries the answer. On the task, each changes the logit difference when it alone gets its value
            of the corrupt prompt; all others leave it as it is.
        constants: edges that the program needs and that carry the same in all prompts (positions). They matter when
            an edge is set to zero, and not when it gets its value of another prompt.
        redundant: sets of edges of which one is enough; each edge of them matters only when the other sets are gone.
        prompt: draws a prompt.
        pair: draws a clean and a corrupt prompt of equal length.
    """

    name: str
    model: Model
    program: Callable[[Sequence[str]], str]
    edges: frozenset[str]
    constants: frozenset[str]
    prompt: Callable[[random.Random], Tokens]
    pair: Callable[[random.Random], tuple[Tokens, Tokens]]
    redundant: tuple[frozenset[str], ...] = ()

    @property
    def nodes(self) -> frozenset[str]:
        """The parts that the edges join: "input", "a0.h2", "m0", "logits"."""
        ends = [end for edge in self.edges for end in edge.split("->")]
        return frozenset(end.partition("<")[0] for end in ends)

    def task(self, n: int = 64, seed: int = 0) -> Task:
        """Pairs of prompts of equal length with different answers; the wrong answer is that of the corrupt prompt.

        Args:
            n: number of rows.
            seed: of the draw.

        Returns:
            The task, without padding.

        Raises:
            InputError: there are no rows.
        """
        if n < 1:
            raise InputError(f"a task needs at least one row, got n={n}")
        source = random.Random(f"task {self.name} {seed}")
        rows: list[tuple[str, str, str, str]] = []
        while len(rows) < n:
            clean, corrupt = self.pair(source)
            answer, wrong = self.program(clean), self.program(corrupt)
            if answer != wrong:
                rows.append((" ".join(clean), " ".join(corrupt), answer, wrong))
        columns = [list(column) for column in zip(*rows, strict=True)]
        return Task.from_prompts(self.model.tokenizer, *columns, name=self.name)

    def accuracy(self, n: int = 256, seed: int = 0) -> float:
        """Share of random prompts to which the model gives the program's answer.

        Args:
            n: number of prompts, of all lengths that the context takes.
            seed: of the draw.

        Returns:
            A number from 0 to 1.

        Raises:
            InputError: there are no prompts.
        """
        if n < 1:
            raise InputError(f"an accuracy needs at least one prompt, got n={n}")
        source = random.Random(f"prompts {self.name} {seed}")
        by_length: dict[int, list[Tokens]] = {}
        for _ in range(n):
            prompt = self.prompt(source)
            by_length.setdefault(len(prompt), []).append(prompt)
        right = 0
        for prompts in by_length.values():
            ids = torch.tensor(self.model.tokenizer([" ".join(prompt) for prompt in prompts])["input_ids"])
            with torch.no_grad():
                said = self.model.module(ids.to(self.model.device)).logits[:, -1].argmax(-1).tolist()
            wanted = self.model.tokenizer.convert_tokens_to_ids([self.program(prompt) for prompt in prompts])
            right += sum(a == b for a, b in zip(said, wanted, strict=True))
        return right / n
