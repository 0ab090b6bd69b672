"""Search for activation functions by a recurrent controller that is rewarded for what its functions achieve.

Source: Ramachandran, Zoph and Le, 2017, arXiv 1710.05941, section 2; PPO: Schulman et al., 2017, arXiv 1707.06347.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, unknown
from actinium.core.estimator import Estimator
from actinium.core.progress import shown
from actinium.functions.searches.activation_expression import ActivationExpression
from actinium.functions.searches.activation_search import LOOKS, WHOLE
from actinium.functions.searches.search_results import Child, Judge
from actinium.functions.searches.search_space import SearchSpace

__all__ = ["RLActivationSearch", "SearchController"]

METHODS = ("ppo", "reinforce")


class SearchController(nn.Module):
    """An LSTM that writes a member of a space token by token, and reads each one that it wrote.

    Args:
        space: whose members it writes.
        hidden: width of the LSTM and of the embeddings of tokens.
    """

    def __init__(self, space: SearchSpace, hidden: int = 64) -> None:
        super().__init__()
        self.space = space
        sizes = [n for _, n in space.steps]
        self.start = nn.Parameter(torch.zeros(hidden))
        self.embed = nn.ModuleList(nn.Embedding(n, hidden) for n in sizes[:-1])
        self.cell = nn.LSTMCell(hidden, hidden)
        self.heads = nn.ModuleList(nn.Linear(hidden, n) for n in sizes)

    def _steps(self, n: int) -> Iterator[Tensor]:
        """Log-probabilities (n, options) of each step; takes the tokens that were chosen by `send`."""
        x, state = self.start.expand(n, -1), None
        for i, head in enumerate(self.heads):
            state = self.cell(x, state)
            chosen = yield head(state[0]).log_softmax(-1)
            x = self.embed[i](chosen) if i < len(self.embed) else x

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Members (n, steps)."""
        walk, found = self._steps(n), []
        with torch.no_grad():
            logs = next(walk)
            while True:
                found.append(torch.multinomial(logs.exp(), 1, generator=generator)[:, 0])
                try:
                    logs = walk.send(found[-1])
                except StopIteration:
                    return torch.stack(found, 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of members (n, steps), and entropies of their steps' distributions, summed: (n,) each."""
        walk = self._steps(len(tokens))
        logs = next(walk)
        total, entropy = torch.zeros(len(tokens)), torch.zeros(len(tokens))
        for i in range(tokens.shape[1]):
            total = total + logs.gather(1, tokens[:, i : i + 1])[:, 0]
            entropy = entropy - (logs.exp() * logs).sum(-1)
            if i + 1 < tokens.shape[1]:
                logs = walk.send(tokens[:, i])
        return total, entropy


class RLActivationSearch(Estimator):
    """Search by a controller that is trained with the scores of children as rewards.

    Advantages are rewards minus an exponential moving average of them. An expression that is refused, or whose child
    failed, is rewarded like the worst child so far.

    Args:
        space: what is searched.
        hidden: width of the controller.
        method: "ppo" (clipped ratios, several steps on each batch) or "reinforce" (one step).
        clip: how far a ratio of probabilities counts from 1.
        lr: learning rate of Adam.
        batch: how many members are drawn for an update.
        entropy: weight of the entropy that is rewarded too.
        decay: of the moving average.
        epochs: PPO's steps on each batch.
        seed: of weights and draws.

    Attributes:
        result_: a `SearchResult`.
        controller_: the `SearchController`.
        rewards_: (updates,) mean reward of each batch.

    Source: Ramachandran et al., 2017, section 2; its hyper-parameters are not published, these are ours.
    """

    fitted = "result_"

    def __init__(
        self,
        space: SearchSpace = WHOLE,
        hidden: int = 64,
        method: str = "ppo",
        clip: float = 0.2,
        lr: float = 1e-3,
        batch: int = 8,
        entropy: float = 1e-2,
        decay: float = 0.9,
        epochs: int = 4,
        seed: int = 0,
    ) -> None:
        self.space, self.hidden, self.method, self.clip, self.lr = space, hidden, method, clip, lr
        self.batch, self.entropy, self.decay, self.epochs, self.seed = batch, entropy, decay, epochs, seed

    def fit(
        self, child: Child, budget: int, file: str | os.PathLike[str] | None = None, *, progress: bool = False
    ) -> RLActivationSearch:
        """Search until so many children were trained, or 50 times as many members were drawn.

        Draws depend on the seed and the scores alone: a search that finds its file draws what it drew before, without
        training those children again, and then goes on.

        Args:
            child: from a factory of modules to a score, higher being better.
            budget: how many children; the last batch may be cut short.
            file: JSON lines with every score.
            progress: show a progress bar.

        Raises:
            InputError: a setting is out of its range, or no child gave a finite score.
            LoadError: the file holds another search, or is damaged.
        """
        self._check(budget)
        about = {k: v for k, v in self.get_params().items() if k not in ("space", "method")}
        judge = Judge("rl", self.space, child, file, about | {"update": self.method})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            controller = SearchController(self.space, self.hidden)
        optimiser = torch.optim.Adam(controller.parameters(), lr=self.lr)
        source = torch.Generator().manual_seed(self.seed)
        worst, average, means = np.inf, None, []
        bar = iter(shown(range(budget), "children", progress))
        while judge.trained < budget and judge.draws < LOOKS * budget:
            tokens = controller.sample(self.batch, source)
            rewards: list[float | None] = []
            for member in tokens.tolist():
                found = judge.look(member)
                if isinstance(found, ActivationExpression):
                    if judge.trained == budget:
                        break
                    found = judge.judge(found)
                    next(bar, None)
                rewards.append(None if found.reason else found.score)
                worst = worst if found.reason else min(worst, found.score)
            if len(rewards) < self.batch or not np.isfinite(worst):
                continue
            values = torch.tensor([worst if r is None else r for r in rewards])
            means.append(float(values.mean()))
            average = means[0] if average is None else average
            self._update(controller, optimiser, tokens, values - average)
            average = self.decay * average + (1 - self.decay) * means[-1]
        for _ in bar:  # so that the bar goes away
            pass
        self.controller_, self.rewards_ = controller, np.array(means)
        self.result_ = judge.finish()
        return self

    def _update(
        self, controller: SearchController, optimiser: torch.optim.Optimizer, tokens: Tensor, advantages: Tensor
    ) -> None:
        with torch.no_grad():
            before = controller(tokens)[0]
        for _ in range(self.epochs if self.method == "ppo" else 1):
            logs, entropy = controller(tokens)
            gain = self.objective(logs, before, advantages)
            optimiser.zero_grad()
            (-gain - self.entropy * entropy.mean()).backward()
            optimiser.step()

    def objective(self, logs: Tensor, before: Tensor, advantages: Tensor) -> Tensor:
        """What is maximised, but for the entropy: of log-probabilities now and at the draw, and advantages, (n,)."""
        if self.method == "reinforce":
            return (advantages * logs).mean()
        ratio = (logs - before).exp()
        return torch.minimum(ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages).mean()

    def _check(self, budget: int) -> None:
        if self.method not in METHODS:
            raise InputError(unknown("method", self.method, METHODS))
        if min(budget, self.hidden, self.batch, self.epochs) < 1:
            raise InputError("budget, hidden, batch and epochs are one or more")
        if not (self.clip > 0 and self.lr > 0 and self.entropy >= 0 and 0 <= self.decay < 1):
            raise InputError("clip and lr are above 0, entropy is 0 or more, and decay lies in [0, 1)")
