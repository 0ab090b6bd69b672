"""What the clues of arrangement puzzles mean, written a second time: by trying every arrangement."""

from __future__ import annotations

import itertools


def meaning(clue, where, n):
    """Truth of a clue when `where` gives the slot of each entity."""
    slots = [where[entity] for entity in clue.entities]
    gap = abs(slots[0] - slots[-1])
    return {
        "at": lambda: slots == [clue.number],
        "not_at": lambda: slots != [clue.number],
        "left_of": lambda: slots == sorted(slots) and gap > 0,
        "right_of": lambda: slots == sorted(slots, reverse=True) and gap > 0,
        "adjacent": lambda: gap in (1,),
        "not_adjacent": lambda: gap not in (1,),
        "between": lambda: sorted(slots)[1] == slots[0] and len(set(slots)) == 3,
        "distance": lambda: gap == clue.number,
        "end": lambda: slots[0] in (1, n),
        "same": lambda: gap == 0,
        "not_same": lambda: gap != 0,
    }[clue.relation]()


def arrangements(space, clues=()):
    """Every arrangement that the clues allow, as the slot of each entity by name."""
    n = space.n
    orders = [itertools.permutations(range(1, n + 1)) for _ in space.attributes]
    out = []
    for chosen in itertools.product(*orders):
        where = dict(zip(space.entities, itertools.chain(*chosen), strict=True))
        if all(meaning(clue, where, n) for clue in clues):
            out.append(where)
    return out
