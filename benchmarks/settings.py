"""What every benchmark can be told, and the models they run on."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel

__all__ = ["Settings", "gpt2", "parser", "read", "tokens"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        tiny: a small model and two rounds, to try the scripts.
        rounds: times that each run is repeated; None leaves it to the benchmark.
        threads: of torch; None leaves them as they are.
        clock: "wall" or "cpu".
        date: printed in the page, ISO.
        out: the page, or the folder of the pages.
    """

    tiny: bool = False
    rounds: int | None = None
    threads: int | None = None
    clock: str = "wall"
    date: str = ""
    out: Path = PAGE

    def repeats(self, usual: int) -> int:
        """Rounds of a benchmark that usually takes `usual`."""
        return self.rounds or (2 if self.tiny else usual)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def parser(description: str) -> argparse.ArgumentParser:
    """The options of all benchmarks."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument("--tiny", action="store_true", help="a small model and two rounds, to try the scripts")
    out.add_argument("--rounds", type=_positive, help="how many times each run is repeated")
    out.add_argument("--threads", type=_positive, help="threads of torch")
    out.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's processor time")
    out.add_argument("--date", default=datetime.date.today().isoformat(), help="printed in the page; today by default")
    return out


def read(given: Mapping[str, Any]) -> Settings:
    """Settings from parsed options; sets the number of threads."""
    settings = Settings(**given)
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    return settings


def gpt2(tiny: bool = False) -> GPT2LMHeadModel:
    """GPT-2 small's shape (with `tiny` a smaller one) with random weights, ready for inference."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_layer": 3, "n_embd": 48, "n_head": 4, "vocab_size": 101, "n_positions": 64} if tiny else {}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)).eval()


def tokens(module: GPT2LMHeadModel, batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """Random token ids (batch, length)."""
    import torch

    random = torch.Generator().manual_seed(seed)
    return torch.randint(1, module.config.vocab_size, (batch, length), generator=random)
