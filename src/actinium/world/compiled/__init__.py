"""Transformers with hand-set weights whose circuit is known: the ground truth of circuit discovery.

    import actinium as ac

    known = ac.world.compiled.build("induction")   # names(): both, either, fraction_so_far, induction, reverse
    known.model                                    # an ordinary Model (GPT-2, float32); also ac.load("world:induction")
    known.task(n=64, seed=0)                       # Task: clean and corrupt prompts of equal length
    known.edges                                    # {"input->a0.h2<v>", "a0.h2->a1.h1<k>", ..., "a1.h1->logits"}
    known.nodes                                    # {"input", "a0.h2", "a1.h1", "logits"}
    known.constants                                # edges that carry positions: they matter to zero ablation alone
    known.redundant                                # of "either": two sets of edges of which one is enough
    known.accuracy(256)                            # 1.0

The other heads, and MLP units that no program uses, have random weights (drawn from `seed`) and write where no part
of the program reads.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from actinium.core.errors import UnknownNameError, unknown
from actinium.world.program import Compiled

__all__ = ["Compiled", "build", "names"]


def names() -> list[str]:
    """Names of the programs."""
    return sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))


def build(name: str, seed: int = 0) -> Compiled:
    """Write the transformer of a program.

    Args:
        name: one of `names()`.
        seed: of the weights of the parts that are not in the circuit; heads and circuit are the same for all.

    Returns:
        Model, program, circuit and task.

    Raises:
        UnknownNameError: there is no such program.
    """
    if name not in names():
        raise UnknownNameError(unknown("compiled program", name, names()))
    made: Compiled = import_module(f"{__name__}.{name}").build(seed)
    return made
