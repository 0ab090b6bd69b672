"""Conditional activation steering (CAST): behaviours that come into force where rules over conditions say so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actinium.core.edit import Edit, Where
from actinium.core.edits import Add
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.finite_output import finite_output
from actinium.core.fitted import opened, write_fitted
from actinium.core.model import Model
from actinium.steering.conditions import Condition, VectorCondition, order_of
from actinium.steering.decisions import Decision
from actinium.steering.operators import Gate, as_strength
from actinium.steering.rules import Rule
from actinium.steering.vector import SteeringVector

__all__ = ["ConditionalSteering", "Decisions", "NormGuard"]

KIND = "conditional steering"
Strengths = float | Tensor | Mapping[str, float | Tensor]


@dataclass(eq=False)
class Decisions:
    """What was decided in a block: of the last call, which conditions held and which rules came into force.

    Attributes:
        of: {condition: its decision}.
        written: {rule as it was written: rule}.
    """

    of: Mapping[str, Decision]
    written: Mapping[str, Rule]
    _kept: dict[int, tuple[Any, tuple[Any, ...], Tensor]] = field(default_factory=dict, repr=False)

    @property
    def last_scores(self) -> dict[str, dict[str, Tensor]]:
        """{condition: {site: (prompts,)}}. Raises InputError before anything has run."""
        return {name: one.last_scores for name, one in self.of.items()}

    @property
    def fired(self) -> dict[str, Tensor]:
        """{condition: (prompts,) bool}. Raises InputError before anything has run."""
        return {name: one.fired for name, one in self.of.items()}

    @property
    def rules(self) -> dict[str, Tensor]:
        """{rule: (prompts,) bool}. Raises InputError before anything has run."""
        fired = self.fired
        return {text: rule.holds(fired) for text, rule in self.written.items()}

    @property
    def behaviours(self) -> dict[str, Tensor]:
        """{behaviour: (prompts,) int}: how many rules brought it into force."""
        out: dict[str, Tensor] = {}
        for text, holds in self.rules.items():
            for name in self.written[text].behaviours:
                out[name] = out.get(name, torch.zeros(len(holds), dtype=torch.int64)) + holds
        return out

    def in_force(self, rule: Rule, where: Where) -> Tensor:
        """Whether a rule is in force in each row of a pass, (rows,) bool."""
        now = where.now
        asked = [self.of[name] for name in rule.conditions]
        version = sum(one.version for one in asked)
        kept = self._kept.get(id(rule))
        # The answer is asked for at every site and token: it stays within one call of `generate`, or within one pass
        # where the call is not known, and what counts as another tower.
        of = now if now.generation is None else now.generation
        place = (version, now.batch, where.site.stack, where.site.layer is None)
        if kept is not None and kept[0] is of and kept[1] == place:
            return kept[2]
        holds = rule.holds({name: self.of[name](where) for name in rule.conditions})
        if all(one.settled(where) for one in asked):
            self._kept[id(rule)] = (of, place, holds)
        return holds


class ConditionalSteering:
    """Steers where rules over conditions say so, and leaves every other prompt exactly as it is.

    Where a rule is in force, each of its behaviours is added: h + strength v at every site of its vector. Additions
    of several rules sum, also where two rules name one behaviour (join their conditions by `or` to add it once).

    Each vector names the sites at which it acts, and each condition those at which it reads: both as they were
    extracted. (IBM's activation-steering reads the output of block l and adds to the input of block l; for this take
    `blocks.l.resid_pre`, as `load_vector` does for its files.)

    Args:
        behaviours: {name: vector}.
        conditions: {name: condition}.
        rules: texts such as "if C1 or (C2 and not C3) then B1", as `Rule.parse` reads them.
        strength: of all behaviours, or {behaviour: strength}; a number, or (batch,).
        sites: names and patterns among each vector's sites, by default all of them; or {behaviour: these}.
        apply_on_prefill: steer the prompt's tokens, too; otherwise only those generated after it, which the prompt's
            own pass, and so the first new token, knows nothing of.
        norm_guard: bring activations back to their former length where a behaviour makes one longer: all of a
            prompt's tokens if it is so for one of them, and each new token by itself (the paper's code: "OOI
            preventive normalization").

    Raises:
        InputError: there are no behaviours, conditions or rules, or one is of another kind; a strength is not finite.
        UnknownNameError: a rule, a strength or a choice of sites names what there is not.
        SiteError: a vector has none of the chosen sites.

    Source: Lee et al., 2024, Programming Refusal with Conditional Activation Steering.
    """

    def __init__(
        self,
        behaviours: Mapping[str, SteeringVector],
        conditions: Mapping[str, Condition],
        rules: str | Sequence[str],
        *,
        strength: Strengths = 1.0,
        sites: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        apply_on_prefill: bool = True,
        norm_guard: bool = False,
    ) -> None:
        self.behaviours, self.conditions = dict(behaviours), dict(conditions)
        self.rules = [rules] if isinstance(rules, str) else list(rules)
        if not self.behaviours or not self.conditions or not self.rules:
            raise InputError("conditional steering needs a behaviour, a condition and a rule, or several of them")
        for name, vector in self.behaviours.items():
            if not isinstance(vector, SteeringVector):
                raise InputError(f"behaviour {name!r} must be a SteeringVector, not {type(vector).__name__}")
        for name, one in self.conditions.items():
            if not isinstance(one, Condition):
                raise InputError(f"condition {name!r} must be a Condition, not {type(one).__name__}")
        self.parsed = {text: Rule.parse(text) for text in self.rules}
        for rule in self.parsed.values():
            rule.check(self.conditions, self.behaviours)
        self.strength = {name: as_strength(s, name) for name, s in self._each(strength, "strength").items()}
        self.sites = self._each(sites, "choice of sites")
        self.apply_on_prefill, self.norm_guard = apply_on_prefill, norm_guard
        self.acting = {name: self._acting(name) for name in self.behaviours}

    def _each(self, given: Any, what: str) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            return dict.fromkeys(self.behaviours, given)
        for name in (*given, *self.behaviours):
            if name not in self.behaviours:
                raise UnknownNameError(f"{what}: {unknown('behaviour', str(name), self.behaviours)}")
            if name not in given:
                raise InputError(f"there is no {what} for the behaviour {name!r}")
        return dict(given)

    def _acting(self, name: str) -> SteeringVector:
        vector, chosen = self.behaviours[name], self.sites[name]
        vector = vector if chosen is None else vector.only(chosen)
        return SteeringVector(
            {site: v for site, v in vector.directions.items() if bool((v != 0).any())}, vector.method, vector.made
        )

    def check(self, model: Model, transfer: bool = False) -> None:
        """Refuse a model that it cannot steer.

        Args:
            model: that is to be steered.
            transfer: whether vectors may have been made on another model.

        Raises:
            InputError: a vector or a condition does not fit the model, or a behaviour acts at a site that a pass
                reaches before the condition that decides on it: then the prompt would not be steered (allowed with
                `apply_on_prefill=False`, where only later passes are).
            SiteError: a site does not exist.
        """
        for name in self.behaviours:
            self.acting[name].check(model, transfer)
        for condition in self.conditions.values():
            condition.check(model, transfer)
        if not self.apply_on_prefill:
            return
        for text, rule in self.parsed.items():
            sites = [site for name in rule.conditions for site in self.conditions[name].sites]
            last = max(sites, key=lambda site: order_of(model, site))
            for name in rule.behaviours:
                for site in self.acting[name].sites:
                    if order_of(model, last) > order_of(model, site):
                        raise InputError(
                            f"in the rule {text!r} the behaviour {name!r} acts at {site}, which a pass reaches before"
                            f" the condition at {last} is decided; act at later sites, or steer the new tokens alone"
                            " with apply_on_prefill=False"
                        )

    @contextmanager
    def applied(self, model: Model, *, transfer: bool = False) -> Iterator[Decisions]:
        """Steer a model while the block lasts: every call of it in this thread, `generate` with cache and beams too.

        Args:
            model: the model.
            transfer: allow vectors that were made on another model.

        Returns:
            Decisions: the scores and what fired, of the last call within the block.

        Raises:
            InputError: as `check`; while running, activations that steering made NaN or infinite.
            SiteError: a site does not exist.
        """
        self.check(model, transfer)
        decisions = Decisions({name: Decision(one) for name, one in self.conditions.items()}, self.parsed)
        edits = [pair for one in decisions.of.values() for pair in one.edits()]
        for site, gates in self._gates(decisions).items():
            edits += [(site, NormGuard(gates))] if self.norm_guard else [(site, gate) for gate in gates]
        with model.edit(edits + finite_output(model)):
            yield decisions

    def _gates(self, decisions: Decisions) -> dict[str, list[Edit]]:
        out: dict[str, list[Edit]] = {}
        for rule in self.parsed.values():
            for name in rule.behaviours:
                for site, direction in self.acting[name].directions.items():
                    gate: Edit = Gate(
                        Add(direction, self.strength[name]), lambda where, rule=rule: decisions.in_force(rule, where)
                    )
                    out.setdefault(site, []).append(gate if self.apply_on_prefill else gate.at(positions="new"))
        return out

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one safetensors file. Conditions of probes are left out: save the probes by themselves.

        Raises:
            InputError: a strength differs from row to row, or the file cannot be written.
        """
        if any(isinstance(s, Tensor) for s in self.strength.values()):
            raise InputError("strengths that differ from row to row belong to one batch and are not saved")
        kept = {name: one for name, one in self.conditions.items() if isinstance(one, VectorCondition)}
        parts = {f"behaviour:{name}": vector for name, vector in self.behaviours.items()}
        parts |= {f"condition:{name}": one.vector for name, one in kept.items()}
        tensors = {f"{part}:{site}": v for part, vector in parts.items() for site, v in vector.directions.items()}
        settings = {
            "rules": self.rules,
            "strength": self.strength,
            "sites": {k: v if v is None or isinstance(v, str) else list(v) for k, v in self.sites.items()},
            "apply_on_prefill": self.apply_on_prefill,
            "norm_guard": self.norm_guard,
        }
        vectors = {part: {"method": v.method, "made": dict(v.made), "sites": v.sites} for part, v in parts.items()}
        conditions = {
            name: {"thresholds": one.thresholds, "fire_when": one.fire_when, "score": one.score, "read": one.read}
            for name, one in kept.items()
        }
        names = {"behaviours": list(self.behaviours), "names": list(self.conditions)}
        return write_fitted(path, KIND, tensors, settings, vectors=vectors, conditions=conditions, **names)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], conditions: Mapping[str, Condition] | None = None
    ) -> ConditionalSteering:
        """Read what `save` wrote.

        Args:
            path: the file.
            conditions: those that the file does not hold, because they are probes.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
            InputError: a condition of a probe is not given.
        """
        given = dict(conditions or {})
        with opened(path, KIND) as (about, tensors):
            vectors = {
                part: SteeringVector(
                    {site: tensors[f"{part}:{site}"] for site in one["sites"]}, one["method"], one["made"]
                )
                for part, one in about["vectors"].items()
            }
            kept: dict[str, Condition] = {
                name: VectorCondition(
                    vectors[f"condition:{name}"],
                    one["thresholds"],
                    one["fire_when"],
                    score=one["score"],
                    read=one["read"],
                )
                for name, one in about["conditions"].items()
            }
            behaviours = {name: vectors[f"behaviour:{name}"] for name in about["behaviours"]}
            names, settings = list(about["names"]), dict(about["settings"])
            rules = settings.pop("rules")
        missing = [name for name in names if name not in kept and name not in given]
        if missing:
            raise InputError(
                f"{path} does not hold the condition {missing[0]!r}, which was a probe's: pass"
                f" conditions={{{missing[0]!r}: ProbeCondition(...)}}"
            )
        return cls(
            behaviours, {name: given[name] if name in given else kept[name] for name in names}, rules, **settings
        )


class NormGuard(Edit):
    """Other edits, after which no activation is longer than it was.

    Args:
        edits: applied in turn. Where one of a prompt's tokens becomes longer, all tokens of that prompt are brought
            back to their former lengths; a new token is where it becomes longer itself.

    Source: Lee et al., 2024, CAST: official code, `use_ooi_preventive_normalization`. There one token of a pass
    decides for all of the batch's first row; here what a token gets depends neither on other rows nor on the cache.
    """

    def __init__(self, edits: Sequence[Edit]) -> None:
        super().__init__()
        self.edits = list(edits)

    def bound(self, site: Any) -> Edit:
        """The edit to use at one site, with those inside bound to it, too."""
        out: NormGuard = super().bound(site)  # type: ignore[assignment]
        out.edits = [edit.bound(site) for edit in self.edits]
        return out

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Edit, and bring back what became longer."""
        new = x
        for edit in self.edits:
            new = edit(new, where)
        if new is x:
            return x
        before, after = x.norm(dim=-1), new.norm(dim=-1)
        longer = after > before
        prompt = where.now.selected("prompt", x.shape[1], where.start, x.device).expand(longer.shape)
        back = torch.where(prompt, (longer & prompt).any(1, keepdim=True), longer)
        # Rows in which nothing is in force keep their exact values.
        back = back & (new != x).any(-1)
        return torch.where(back[..., None], new * (before / after.clamp_min(1e-30))[..., None], new)
