"""ActivationReasoner: concepts read while a model runs, rules over them, and the model steered by what follows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from actinium.core.edits import Edit, Where
from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.core.finite_output import finite_output
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.features.activation_reasoning.concepts import ConceptDictionary
from actinium.features.activation_reasoning.detection import ConceptDetector, Detection, Proposition
from actinium.features.activation_reasoning.labels import ordinary
from actinium.features.activation_reasoning.proofs import Answer
from actinium.features.activation_reasoning.rules import RuleBase
from actinium.features.activation_reasoning.steering import RuleSteering
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.latent_amplification import check_autoencoder
from actinium.features.splicing import flattened

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ActivationReasoner", "ReasonedText", "Step", "Trace"]

SCOPES = ("input", "output", "full_sequence")


@dataclass(frozen=True)
class Step:
    """One forward pass.

    Attributes:
        position: last token that it read.
        found: propositions of the tokens that it read.
        holds: names that follow from everything found so far.
        fired: rules that are active.
        steered: concepts in whose direction the last token was moved.
        norm: length of that move.
    """

    position: int
    found: tuple[Proposition, ...]
    holds: tuple[str, ...]
    fired: tuple[str, ...]
    steered: tuple[str, ...]
    norm: float


@dataclass
class Trace:
    """What was found, what followed, and what was done about it, pass by pass."""

    steps: list[Step] = field(default_factory=list)

    @property
    def propositions(self) -> tuple[Proposition, ...]:
        """Everything that was found, in order."""
        return tuple(p for step in self.steps for p in step.found)

    @property
    def fired(self) -> tuple[str, ...]:
        """Rules that were active at some time."""
        return tuple(dict.fromkeys(rule for step in self.steps for rule in step.fired))

    def table(self) -> pd.DataFrame:
        """One row for each pass: position, found, holds, fired, steered, norm."""
        import pandas as pd

        names = ("holds", "fired", "steered")
        rows = [
            {"position": s.position, "found": ", ".join(f"{p.concept}@{p.position}" for p in s.found)}
            | {name: ", ".join(getattr(s, name)) for name in names}
            | {"norm": s.norm}
            for s in self.steps
        ]
        return pd.DataFrame(rows, columns=["position", "found", *names, "norm"])


@dataclass(frozen=True, eq=False)
class ReasonedText:
    """A continuation and how it came about."""

    text: str
    ids: Tensor
    trace: Trace


class ReasoningEdit(Edit):
    """Reads concepts at the tokens of each pass, applies rules, and moves the last token of the pass.

    What an earlier pass added to a token is added again where its column is computed again (without a cache).
    """

    def __init__(self, reasoner: ActivationReasoner, factor: float, facts: Sequence[str], duration: int | None) -> None:
        super().__init__()
        self.reasoner, self.factor, self.facts, self.duration = reasoner, factor, list(facts), duration
        self.trace = Trace()
        self.moves: list[Tensor | None] = []
        self.active: dict[str, None] = {}
        self.steered = 0

    @torch.no_grad()
    def change(self, x: Tensor, where: Where) -> Tensor:
        """Read what is new, and add what was decided."""
        r = self.reasoner
        if x.shape[0] != 1:
            raise InputError(f"a reasoner follows one text at a time, not {x.shape[0]}")
        flat = flattened(x, r.dictionary.d_in)[0]
        fresh = max(0, len(self.moves) - where.start)
        if fresh < len(flat):
            self._read(flat[fresh:], where, where.start + fresh)
        moves = self.moves[where.start : where.start + len(flat)]
        if all(move is None for move in moves):
            return x
        shift = torch.stack([torch.zeros_like(flat[0]) if m is None else m.to(flat) for m in moves])
        return (flat + shift).view(x.shape)

    def _read(self, rows: Tensor, where: Where, first: int) -> None:
        r = self.reasoner
        wanted = torch.ones(len(rows), dtype=torch.bool)
        ids = where.now.arguments.get("input_ids")
        if isinstance(ids, Tensor):
            wanted &= ordinary(r.model, ids[0, -len(rows) :].cpu())
        prompt = int(where.now.prompt[0]) if where.now.prompt is not None else first + len(rows)
        inside = torch.arange(first, first + len(rows)) < prompt
        if r.scope != "full_sequence":
            wanted &= inside if r.scope == "input" else ~inside
        found: tuple[Proposition, ...] = ()
        if bool(wanted.any()):
            latents = r.dictionary.encode(rows.to(r.dictionary.W_dec.dtype))
            local = r.detector.detect(latents.cpu(), wanted).propositions
            found = tuple(Proposition(p.concept, p.position + first, p.confidence) for p in local)
        names = [p.concept for p in (*self.trace.propositions, *found)]
        holds, fired, heads = r.conclusions(names, self.facts)
        self.active = (self.active if r.sticky else {}) | dict.fromkeys(fired)
        if r.sticky:
            heads = [h for rule in r.rules.rules if str(rule) in self.active for h in rule.conclusions]
        steered = tuple(h for h in dict.fromkeys(heads) if h in r.concepts.concepts_)
        move, norm = None, 0.0
        if steered and self.factor and (self.duration is None or self.steered < self.duration):
            direction = r.steering.direction(steered) if r.steering is not None else None
            if direction is not None and float(direction.norm()) > 0:
                length = self.factor * rows[-1].double().norm()
                move = direction.to(rows.device) * (length / direction.norm())
                norm, self.steered = float(move.norm()), self.steered + 1
        self.moves += [None] * (len(rows) - 1) + [move]
        kept = steered if move is not None else ()
        self.trace.steps.append(Step(first + len(rows) - 1, found, tuple(holds), tuple(self.active), kept, norm))


class ActivationReasoner:
    """Logical rules over the concepts that a model's activations show, and steering by their heads.

    Args:
        model: a causal language model.
        site: what the dictionary reads, a residual stream.
        dictionary: an autoencoder.
        detector: fitted, with the concepts of that dictionary.
        rules: texts "body -> head", or a RuleBase. Bodies name concepts or heads of other rules. `not a` holds where a
            was not found and does not follow.
        factor: length of the move over that of the hidden state; 0 reads only, negative suppresses.
        steering_top_k, norm, combine: see `RuleSteering`.
        scope: where concepts are read: "input" (the prompt), "output" (new tokens) or "full_sequence".
        sticky: rules that were active once stay active; then what is found later does not take a conclusion back.
        ordered: bodies are sequences: names that must occur in their order, and heads are not read by other rules.

    Raises:
        InputError: widths differ; rules are not stratified or, where ordered, no sequences; no head is a concept that
            can be steered, though the factor is not 0.
        UnknownNameError: a rule names an unknown concept, or there is no such scope.
        SiteError: the site does not exist.

    Source: Helff et al., 2025.
    """

    def __init__(
        self,
        model: Model,
        site: str,
        dictionary: Dictionary,
        detector: ConceptDetector,
        rules: RuleBase | Iterable[str],
        *,
        factor: float = 0.5,
        steering_top_k: int = 10,
        norm: float = 2.0,
        combine: str = "sum",
        scope: str = "full_sequence",
        sticky: bool = True,
        ordered: bool = False,
    ) -> None:
        check_autoencoder(model, site, dictionary)
        detector.check_fitted()
        if scope not in SCOPES:
            raise UnknownNameError(unknown("scope", scope, SCOPES))
        self.model, self.site, self.dictionary, self.detector = model, site, dictionary, detector
        self.concepts = detector.concepts
        self.rules = rules if isinstance(rules, RuleBase) else RuleBase(rules)
        self.factor, self.scope, self.sticky, self.ordered = factor, scope, sticky, ordered
        self.steering_top_k, self.norm, self.combine = steering_top_k, norm, combine
        if self.concepts.width_ != dictionary.d_sae:
            raise InputError(f"concepts of {self.concepts.width_} latents, but the dictionary has {dictionary.d_sae}")
        self.rules.check(self.concepts.concepts_)
        if ordered:
            self.rules.in_order([])
        else:
            self.rules.strata()
        self.steering: RuleSteering | None = None
        if self.concepts.kind == "top_k":
            self.steering = RuleSteering(self.concepts, dictionary, steering_top_k, norm, combine)
        self._check_factor(factor)

    def _check_factor(self, factor: float) -> None:
        if not torch.isfinite(torch.tensor(float(factor))):
            raise InputError(f"the factor must be finite, not {factor}")
        if factor and self.steering is None:
            raise InputError("trees have no direction to steer in; set factor=0, or fit the concepts with kind='top_k'")
        if factor and not any(head in self.concepts.concepts_ for head in self.rules.heads):
            raise InputError("no head of a rule is a concept, so there is nothing to steer with; set factor=0")

    # Reading --------------------------------------------------------------------------------------------------

    def conclusions(self, found: Sequence[str], facts: Iterable[str] = ()) -> tuple[list[str], list[str], list[str]]:
        """What holds given the concepts found, in order; the rules that fire; and what these assert."""
        if self.ordered:
            fired = self.rules.in_order([*facts, *found])
            heads = [head for rule in fired for head in rule.conclusions]
            return list(dict.fromkeys([*found, *heads])), [str(rule) for rule in fired], heads
        known = self.rules.forward([*facts, *(_quoted(name) for name in found)])
        heads = [head for rule in known.fired for head in rule.conclusions]
        return sorted(known.atoms), [str(rule) for rule in known.fired], heads

    def detect(self, prompt: Any) -> Detection:
        """Concepts of one text, special tokens left out.

        Raises:
            InputError: it is not one text, or nothing but special tokens.
        """
        tokens = self._one(prompt)
        with torch.no_grad():
            rows = flattened(self.model.record(tokens, self.site)[self.site], self.dictionary.d_in)[tokens.mask]
            latents = self.dictionary.encode(rows).cpu()
        return self.detector.detect(latents, ordinary(self.model, tokens.ids[tokens.mask]))

    def ask(self, prompt: Any, query: str, facts: Iterable[str] = ()) -> Answer:
        """Whether a query follows from the concepts of a text and further facts, in an open world.

        Raises:
            InputError: see `detect` and `RuleBase.entails`.
        """
        return self.rules.entails([*facts, *(_quoted(name) for name in self.detect(prompt).names)], query)

    # Steering -------------------------------------------------------------------------------------------------

    @contextmanager
    def applied(
        self, factor: float | None = None, facts: Sequence[str] = (), duration: int | None = None
    ) -> Iterator[Trace]:
        """Read and steer in any call of the model on one text while the block lasts; the trace fills as it runs.

        Args:
            factor: instead of the reasoner's own.
            facts: further names that hold.
            duration: most passes that are steered; all by default.

        Raises:
            InputError: nothing can be steered with; a second text; activations that a factor made NaN or infinite.
        """
        factor = self.factor if factor is None else factor
        self._check_factor(factor)
        if duration is not None and duration < 0:
            raise InputError(f"duration must be 0 or more, not {duration}")
        edit = ReasoningEdit(self, float(factor), facts, duration)
        with self.model.edit([(self.site, edit), *finite_output(self.model)]):
            yield edit.trace

    def generate(
        self,
        prompt: Any,
        *,
        factor: float | None = None,
        facts: Sequence[str] = (),
        duration: int | None = None,
        max_new_tokens: int = 20,
        **options: Any,
    ) -> ReasonedText:
        """Continue a text, steered at every new token by the heads of the rules that are active.

        Args:
            prompt: one text, or tokens (1, pos).
            factor, facts, duration: see `applied`.
            max_new_tokens: most tokens.
            options: of the library's `generate`; greedy by default.

        Raises:
            InputError: the prompt is not one text or nothing but special tokens.
        """
        tokens = self._one(prompt)
        options.setdefault("do_sample", False)
        with self.applied(factor, facts, duration) as trace:
            out = self.model.generate(tokens, max_new_tokens=max_new_tokens, **options)
        new = out[0, tokens.ids.shape[1] :]
        tokenizer = self.model.tokenizer
        text = (
            " ".join(map(str, new.tolist())) if tokenizer is None else tokenizer.decode(new, skip_special_tokens=True)
        )
        return ReasonedText(text, out[0], trace)

    def _one(self, prompt: Any) -> Tokens:
        tokens = prompt if isinstance(prompt, Tokens) else self.model.prepare(prompt).tokens
        if tokens is None or len(tokens) != 1:
            raise InputError(f"one text is needed, not {0 if tokens is None else len(tokens)}")
        if not bool((tokens.mask & ordinary(self.model, tokens.ids)).any()):
            raise InputError("the prompt holds nothing but special tokens")
        return tokens

    # Files ----------------------------------------------------------------------------------------------------

    def config(self) -> str:
        """Concepts, thresholds, rules and settings as JSON; the model and the dictionary are not part of it."""
        own = ("site", "factor", "steering_top_k", "norm", "combine", "scope", "sticky", "ordered")
        d = self.detector
        return json.dumps(
            {
                "settings": {name: getattr(self, name) for name in own},
                "rules": self.rules.texts(),
                "concepts": self.concepts.config(),
                "detector": {n: v for n, v in d.get_params().items() if n != "concepts"},
                "thresholds": d.thresholds_.tolist(),
                "global_thresholds": d.global_thresholds_.tolist(),
            }
        )

    @classmethod
    def from_config(cls, model: Model, dictionary: Dictionary, config: str) -> Self:
        """The reasoner that `config` described.

        Raises:
            LoadError: it is no such JSON.
            InputError, UnknownNameError, SiteError: it does not fit the model or the dictionary.
        """
        try:
            told: Mapping[str, Any] = json.loads(config)
            concepts = ConceptDictionary.from_config(told["concepts"])
            detector = ConceptDetector(concepts, **told["detector"])
            detector.thresholds_ = torch.tensor(told["thresholds"], dtype=torch.float64)
            detector.global_thresholds_ = torch.tensor(told["global_thresholds"], dtype=torch.float64)
            detector.accuracy_ = torch.full_like(detector.thresholds_, torch.nan)
            settings, rules = dict(told["settings"]), list(told["rules"])
            site = settings.pop("site")
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(f"this describes no reasoner: {error!r}") from None
        return cls(model, site, dictionary, detector, rules, **settings)


def _quoted(name: str) -> str:
    """A concept's name as a formula."""
    return f'"{name}"'
