"""Nodes of a model, the sets of them that a sweep visits, and the names of its axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from actinium.core.edits import Edit
from actinium.core.errors import InputError, SiteError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.passes import check_positions
from actinium.core.sites import Site
from actinium.core.task import Task

__all__ = ["Node", "NodeSets", "named_sets", "node_sets"]

OVER = {"layer": (), "pos": ("pos",), "head": ("head",), "head_pos": ("head", "pos"), "unit": ("unit",)}
"""What each value of `over` sweeps besides the sites."""


@dataclass(frozen=True, eq=False)
class Node:
    """A site, or a part of one.

    Attributes:
        site: name of a site, or a pattern for several.
        positions: token positions as in `Edit.at` (0 first, -1 last; (batch, k) for others in each row), None all.
        heads: heads, or key/value heads at `attn.k` and `attn.v`; None all.
        units: entries of the last dimension; None all.
    """

    site: str
    positions: Any = None
    heads: int | Sequence[int] | None = None
    units: int | Sequence[int] | None = None

    def restrict(self, edit: Edit, rows: slice | None = None) -> Edit:
        """The edit limited to this node; `rows` are those of the task that the batch holds."""
        positions = self.positions
        if rows is not None and isinstance(positions, Tensor) and positions.ndim == 2:
            positions = positions[rows]
        return edit.at(positions=positions, heads=self.heads, units=self.units)


@dataclass(frozen=True, eq=False)
class NodeSets:
    """Sets of nodes, one for each entry of a grid, that are each patched jointly.

    Attributes:
        dims: axes of the grid.
        coords: labels of each axis, and of further names on it.
        sets: in C order of the grid, each with plain site names.
        present: (set, row) bool, where the row has the positions of the set; None where every row has.
    """

    dims: tuple[str, ...]
    coords: dict[str, Any]
    sets: list[list[Node]]
    present: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""
        return tuple(len(self.coords[d]) for d in self.dims)

    @property
    def sites(self) -> list[str]:
        """Names of all sites, without repeats."""
        return list(dict.fromkeys(node.site for nodes in self.sets for node in nodes))


@dataclass
class _Axis:
    """One axis of a grid: its name, its labels, and what each entry adds to a node."""

    dim: str
    labels: list[Any]
    parts: list[dict[str, Any]]
    more: dict[str, Any] = field(default_factory=dict)
    present: Tensor | None = None


def node_sets(
    model: Model,
    task: Task,
    at: Any,
    over: str | None,
    positions: Any = None,
    heads: int | Sequence[int] | None = None,
    units: int | Sequence[int] | None = None,
) -> NodeSets:
    """The grid of a sweep.

    Args:
        model: the model.
        task: gives the positions and their tokens.
        at: sites, or {name: node, site or list of them} for sets that are patched jointly.
        over: "pos" (also None), "layer" (whole sites), "head", "head_pos" or "unit"; named sets have none.
        positions: of the sweep where it goes over positions ({name: positions} names them), else of every node.
        heads, units: likewise.

    Raises:
        UnknownNameError: `over` is none of these.
        SiteError: a site does not exist, or lacks the dimension that is swept.
        InputError: a choice is empty or outside the site, or the sites differ in the number of heads.
    """
    if isinstance(at, Mapping):
        if over is not None or positions is not None or heads is not None or units is not None:
            raise InputError(
                "named sets are patched as they are: give positions, heads and units in each Node, and no over="
            )
        return named_sets(model, task, at)
    over = "pos" if over is None else over
    if over not in OVER:
        raise UnknownNameError(unknown("sweep over", over, OVER))
    sites = [site for site, _, _ in model.resolve(at)]
    axes, node_of = _site_axes(sites, _names(model, at))
    swept = OVER[over]
    common: dict[str, Any] = {}
    if "head" in swept:
        axes.append(_head_axis(sites, heads))
    elif heads is not None:
        common["heads"] = heads
    if "pos" in swept:
        axes.append(_position_axis(sites, task, positions))
    elif positions is not None:
        if isinstance(positions, Mapping):
            raise InputError('named positions are swept one by one: use over="pos" or over="head_pos"')
        check_positions(positions)
        _check_rows(positions, task)
        common["positions"] = positions
    if "unit" in swept:
        axes.append(_unit_axis(sites, units))
    elif units is not None:
        common["units"] = units
    sets = []
    for entry in product(*(axis.parts for axis in axes)):
        key = tuple(part["site"] for part in entry if "site" in part)
        more = {k: v for part in entry for k, v in part.items() if k != "site"}
        sets.append([replace(Node(node_of[key]), **common, **more)])
    for node in {id(n): n for nodes in sets for n in nodes}.values():
        _check(model, node)
    return NodeSets(tuple(a.dim for a in axes), _coords(axes), sets, _present(axes))


def named_sets(model: Model, task: Task, at: Mapping[str, Any], dim: str = "set") -> NodeSets:
    """Sets of nodes under names of their own; see `node_sets`."""
    if not at:
        raise InputError("no sets given; pass {name: node, site or list of them}")
    sets = []
    for name, given in at.items():
        items = [given] if isinstance(given, str | Node) else list(given)
        if not items:
            raise InputError(f"the set {name!r} is empty")
        nodes = []
        for item in items:
            node = Node(item) if isinstance(item, str) else item
            if not isinstance(node, Node):
                raise InputError(f"the set {name!r} holds a {type(item).__name__}; expected sites or Nodes")
            if node.positions is not None:
                check_positions(node.positions)
                _check_rows(node.positions, task)
            nodes += [replace(node, site=n) for n in _names(model, node.site)]
        for node in nodes:
            _check(model, node)
        sets.append(nodes)
    return NodeSets((dim,), {dim: [str(name) for name in at]}, sets)


def _names(model: Model, at: Any) -> list[str]:
    """Names of sites, with the call number where one was asked for."""
    return [site.name if call is None else f"{site.name}#{call}" for site, _, call in model.resolve(at)]


def _check(model: Model, node: Node) -> None:
    """Refuse a restriction that the site does not have."""
    ((site, _, _),) = model.resolve(node.site)
    node.restrict(_Whole()).check(site)


class _Whole(Edit):
    """Carries a restriction to be checked."""

    def change(self, x: Tensor, where: Any) -> Tensor:
        return x


def _check_rows(positions: Any, task: Task) -> None:
    if isinstance(positions, Tensor) and positions.ndim == 2 and positions.shape[0] != len(task):
        raise InputError(f"positions: {positions.shape[0]} rows for the {len(task)} rows of the task")


def _site_axes(sites: list[Site], names: list[str]) -> tuple[list[_Axis], dict[tuple[Any, ...], str]]:
    """One axis for layers (and one for parts, where there are several), or one for the sites by name."""
    layers = sorted({s.layer for s in sites if s.layer is not None})
    parts = list(dict.fromkeys(f"{s.stack}.{s.part}".lstrip(".") for s in sites))
    grid = {(f"{s.stack}.{s.part}".lstrip("."), s.layer): n for s, n in zip(sites, names, strict=True)}
    if any(s.layer is None for s in sites) or len(grid) != len(layers) * len(parts) or len(grid) != len(sites):
        axis = _Axis("site", list(names), [{"site": n} for n in names])
        return [axis], {(n,): n for n in names}
    axes = [_Axis("layer", layers, [{"site": layer} for layer in layers])]
    if len(parts) == 1:
        return axes, {(layer,): grid[parts[0], layer] for layer in layers}
    axes.insert(0, _Axis("part", parts, [{"site": part} for part in parts]))
    return axes, {(part, layer): name for (part, layer), name in grid.items()}


def _head_axis(sites: list[Site], heads: int | Sequence[int] | None) -> _Axis:
    found: dict[tuple[str, int], str] = {}
    for site in sites:
        dim = next((d for d in ("head", "kv_head") if d in site.dims), None)
        if dim is None:
            raise SiteError(
                f"{site.name} has no heads; its dimensions are {site.dims} (heads are at attn.z, q, k, v, pattern)"
            )
        found.setdefault((dim, site.sizes[dim]), site.name)
    if len({size for _, size in found}) > 1:
        shown = ", ".join(f"{name} has {size}" for (_, size), name in found.items())
        raise InputError(f"the sites differ in the number of heads ({shown}); sweep them one after the other")
    size = next(iter(found))[1]
    labels = _chosen("heads", heads, size)
    return _Axis(
        "kv_head" if {d for d, _ in found} == {"kv_head"} else "head", labels, [{"heads": [h]} for h in labels]
    )


def _unit_axis(sites: list[Site], units: int | Sequence[int] | None) -> _Axis:
    sizes = {site.sizes.get(site.dims[-1]) if site.dims else None for site in sites}
    if len(sizes) != 1 or None in sizes or any(s.dims[-1] == "key" for s in sites):
        raise InputError("over='unit' needs sites with units, of one known size")
    labels = _chosen("units", units, int(sizes.pop() or 0))
    return _Axis("unit", labels, [{"units": [u]} for u in labels])


def _chosen(what: str, given: int | Sequence[int] | None, size: int) -> list[int]:
    labels = list(range(size)) if given is None else [given] if isinstance(given, int) else list(given)
    if not labels:
        raise InputError(f"{what}: the choice is empty")
    wrong = [i for i in labels if not 0 <= i < size]
    if wrong:
        raise InputError(f"{what} go from 0 to {size - 1}, not {wrong[0]}")
    return labels


def _position_axis(sites: list[Site], task: Task, positions: Any) -> _Axis:
    for site in sites:
        if not {"pos", "query"} & set(site.dims):
            raise SiteError(f"{site.name} has no positions; its dimensions are {site.dims}")
    lengths = task.mask.sum(1)
    if isinstance(positions, Mapping):
        return _named_positions(positions, task, lengths)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if positions is None:
        labels = list(range(longest)) if shortest == longest else list(range(-longest, 0))
    elif isinstance(positions, slice):
        if shortest != longest:
            raise InputError("positions: the prompts differ in length; name positions one by one, from the end (-1)")
        labels = list(range(longest))[positions]
    else:
        check_positions(positions)
        labels = [int(p) for p in ([positions] if isinstance(positions, int) else positions)]
    if not labels or any(not -longest <= p < longest for p in labels):
        raise InputError(f"positions go from {-longest} to {longest - 1} (prompts of up to {longest} tokens)")
    has = torch.stack([(lengths > p) if p >= 0 else (lengths >= -p) for p in labels])
    tokens = [position_token(task, p) for p in labels]
    return _Axis("pos", labels, [{"positions": [p]} for p in labels], {"token": tokens}, None if has.all() else has)


def _named_positions(positions: Mapping[str, Any], task: Task, lengths: Tensor) -> _Axis:
    parts, has = [], []
    for name, given in positions.items():
        check_positions(given)
        value = torch.as_tensor(given)
        if value.ndim == 1 and len(value) == len(task):
            value = value[:, None]
        elif value.ndim < 2:
            value = value.reshape(1, -1).expand(len(task), -1)
        _check_rows(value, task)
        inside = ((value < lengths[:, None]) & (value >= -lengths[:, None])).all(1)
        if not bool(inside.any()):
            raise InputError(f"positions: no prompt has the positions {name!r}")
        parts.append({"positions": value})
        has.append(inside)
    if not parts:
        raise InputError("positions: no names given")
    every = torch.stack(has)
    return _Axis("pos", [str(name) for name in positions], parts, {}, None if every.all() else every)


def position_token(task: Task, position: int) -> str:
    """What stands at a position: the token, `clean/corrupt` where they differ, `token ..` where rows do."""
    seen: list[Counter[str]] = []
    for rows in (task.clean_tokens, task.corrupt_tokens):
        inside = [row for row in rows if -len(row) <= position < len(row)]
        seen.append(Counter(row[position].strip() or repr(row[position]) for row in inside))
    clean, corrupt = (counts.most_common(1)[0][0] if counts else "" for counts in seen)
    if all(len(counts) <= 1 for counts in seen):
        return clean if clean == corrupt else f"{clean}/{corrupt}"
    return f"{clean} .."


def _coords(axes: Iterable[_Axis]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for axis in axes:
        out[axis.dim] = axis.labels
        out.update({name: (axis.dim, values) for name, values in axis.more.items()})
    return out


def _present(axes: list[_Axis]) -> Tensor | None:
    """(set, row): the position axis's answer for each entry of the grid."""
    found = next((a.present for a in axes if a.present is not None), None)
    if found is None:
        return None
    before = 1
    for axis in axes:
        if axis.present is not None:
            break
        before *= len(axis.labels)
    after = 1
    for axis in reversed(axes):
        if axis.present is not None:
            break
        after *= len(axis.labels)
    return found.repeat_interleave(after, 0).repeat(before, 1)
