"""Integrity: what a module consists of, as a manifest, and what has been changed in it since."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from actinium.core.errors import InputError, LoadError
from actinium.core.model import Model
from actinium.core.provenance import fingerprint

__all__ = ["Difference", "IntegrityManifest"]

FORMAT = 1
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
KINDS = ("parameter", "buffer", "tensor", "module", "method", "hook")


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the manifest says.

    Attributes:
        kind: "parameter", "buffer", "tensor" (a plain attribute), "module" (its class), "method" (one that stands on
            the instance and hides that of the class), or "hook".
        name: where it is.
        change: "added", "removed" or "changed".
    """

    kind: str
    name: str
    change: str


@dataclass(frozen=True)
class IntegrityManifest:
    """Hashes of everything in a module that decides what it computes: take one while it is trusted, check it later.

    A vector can be added by a hook, but also baked into the bias of a feed-forward output, kept in a buffer or in an
    attribute of a wrapper, or written into a replaced `forward`; so hooks alone are not enough. What is global to the
    process (hooks on all modules) is listed too. The code of classes is not hashed.

    Attributes:
        entries: {kind: {name: what is there}}.

    Source: an addition to Wang and Shu, 2023 (countermeasures).
    """

    entries: dict[str, dict[str, str]]

    @classmethod
    def of(cls, model: Model | nn.Module) -> IntegrityManifest:
        """Take the manifest of a model.

        Raises:
            InputError: it is no module.
        """
        module = model.module if isinstance(model, Model) else model
        if not isinstance(module, nn.Module):
            raise InputError(f"a manifest is of a torch.nn.Module, not of a {type(module).__name__}")
        found: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
        for kind, name, value in _contents(module):
            found[kind][name] = value
        return cls(found)

    def differences(self, model: Model | nn.Module) -> list[Difference]:
        """What was added, removed or changed since; nothing for an untouched module."""
        now = IntegrityManifest.of(model).entries
        out = []
        for kind in KINDS:
            before, after = self.entries.get(kind, {}), now[kind]
            for name in sorted(before.keys() | after.keys()):
                if name not in before or name not in after:
                    out.append(Difference(kind, name, "removed" if name in before else "added"))
                elif before[name] != after[name]:
                    out.append(Difference(kind, name, "changed"))
        return out

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write as JSON, whole or not at all; keep it where an attacker of the model cannot write.

        Raises:
            InputError: the file cannot be written.
        """
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        text = json.dumps({"actinium": "integrity manifest", "format": FORMAT, "entries": self.entries}, indent=1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}") from error
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> IntegrityManifest:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged or something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LoadError(f"cannot read the manifest {path}: {error}") from None
        entries = content.get("entries") if isinstance(content, dict) and content.get("format") == FORMAT else None
        if not isinstance(entries, dict) or set(entries) != set(KINDS):
            raise LoadError(f"{path} is no integrity manifest of format {FORMAT}")
        return cls(entries)


def _contents(module: nn.Module) -> Iterator[tuple[str, str, str]]:
    """(kind, name, what is there) of everything in a module."""
    # One tensor under several names is hashed under each: untying them is a change too.
    for name, value in module.named_parameters(remove_duplicate=False):
        yield "parameter", name, fingerprint(value)
    for name, value in module.named_buffers(remove_duplicate=False):
        yield "buffer", name, fingerprint(value)
    for path, one in module.named_modules(remove_duplicate=False):
        shown = path or "(root)"
        yield "module", shown, f"{type(one).__module__}.{type(one).__qualname__}"
        for attribute, value in vars(one).items():
            place = f"{path}.{attribute}" if path else attribute
            if isinstance(value, Tensor):
                yield "tensor", place, fingerprint(value)
            elif callable(value) and callable(getattr(type(one), attribute, None)):
                yield "method", place, _called(value)
        for kind in HOOKS:
            for number, hook in enumerate(getattr(one, kind, {}).values()):
                yield "hook", f"{shown}{kind}[{number}]", _called(hook)
    for kind, value in vars(torch_module).items():
        if kind.startswith("_global_") and kind.endswith("_hooks") and isinstance(value, dict):
            for number, hook in enumerate(value.values()):
                yield "hook", f"(all modules){kind}[{number}]", _called(hook)


def _called(hook: Any) -> str:
    inner = getattr(hook, "func", getattr(hook, "hook", hook))
    return f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
