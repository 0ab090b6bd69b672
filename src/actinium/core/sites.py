"""The site language: names of activations, and patterns over them.

A name has parts separated by dots: ``blocks.3.attn.pattern``. In a pattern ``*`` stands for anything within one
part, ``**`` for anything across parts, ``{2,5}`` for either of the alternatives, ``4-8`` for a whole part that is a
number from 4 to 8, and a negative number in a part counts layers from the end. ``module:PATH`` addresses the output
of any module, ``module_in:PATH`` its input, and ``#k`` at the end one call of it within a forward pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from actinium.core.errors import SiteError, unknown

__all__ = ["Site", "is_pattern", "select", "split_call", "translate"]

SPECIAL = re.compile(r"[*{}]")
RANGE = re.compile(r"(\d+)-(\d+)")
CALL = re.compile(r"#(\d+)$")


@dataclass(frozen=True)
class Site:
    """The address of one activation.

    Attributes:
        name: for example ``blocks.3.attn.z``.
        dims: names of the dimensions, outermost first.
        sizes: the sizes that are the same for every input, by dimension name.
        layer: index of the block, or None outside the blocks.
        part: the name within the block (``attn.z``), or the whole name outside the blocks.
        stack: the tower it belongs to (``encoder``, ``vision``), empty where there is only one.
    """

    name: str
    dims: tuple[str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict, compare=False)
    layer: int | None = None
    part: str = ""
    stack: str = ""

    def __str__(self) -> str:
        return self.name


def split_call(name: str) -> tuple[str, int | None]:
    """Separate the call number: ``module:net.0#2`` gives ``("module:net.0", 2)``, without one ``None``."""
    found = CALL.search(name)
    return (name[: found.start()], int(found.group(1))) if found else (name, None)


def is_pattern(text: str) -> bool:
    """Whether `text` has any of the marks of the pattern language."""
    return bool(SPECIAL.search(text)) or any(RANGE.fullmatch(p) for p in re.split(r"[.:]", text))


def translate(pattern: str) -> re.Pattern[str]:
    """Compile a pattern to a regular expression that must match a whole name.

    Raises:
        SiteError: if braces do not close, or a range runs backwards.
    """
    prefix, colon, path = pattern.rpartition(":")
    written = _split_parts(path, pattern)
    # Several ** in a row mean what one means.
    written = [p for i, p in enumerate(written) if p != "**" or i == 0 or written[i - 1] != "**"]
    parts = [_part(p, pattern) for p in written]
    body = ""
    for i, part in enumerate(parts):
        if part is None:
            body += r".*" if i == len(parts) - 1 else r"(?:.*\.)?"
        else:
            body += part + ("" if i == len(parts) - 1 else r"\.")
    # A trailing ** also matches nothing: `blocks.**` would otherwise demand a dot after `blocks`.
    if len(parts) > 1 and parts[-1] is None:
        body = body[: -len(r"\..*")] + r"(?:\..*)?"
    return re.compile(re.escape(prefix + colon) + body)


def _split_parts(path: str, pattern: str) -> list[str]:
    parts, depth, word = [], 0, ""
    for char in path:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            raise SiteError(f"site pattern {pattern!r}: '}}' without '{{'")
        if char == "." and depth == 0:
            parts.append(word)
            word = ""
        else:
            word += char
    if depth:
        raise SiteError(f"site pattern {pattern!r}: '{{' is not closed")
    return [*parts, word]


def _part(part: str, pattern: str) -> str | None:
    """The expression of one part; None stands for ``**``."""
    if part == "**":
        return None
    if "**" in part:
        raise SiteError(f"site pattern {pattern!r}: '**' must be a part of its own, between dots")
    numbers = RANGE.fullmatch(part)
    if numbers:
        return _numbers(int(numbers.group(1)), int(numbers.group(2)), pattern)
    out, rest = "", part
    while rest:
        head, brace, rest = rest.partition("{")
        out += "[^.]*".join(re.escape(piece) for piece in head.split("*"))
        if brace:
            inside, _, rest = rest.partition("}")
            if "{" in inside:
                raise SiteError(f"site pattern {pattern!r}: braces cannot be nested")
            choices = []
            for word in inside.split(","):
                numbers = RANGE.fullmatch(word.strip())
                if numbers:
                    choices.append(_numbers(int(numbers.group(1)), int(numbers.group(2)), pattern))
                else:
                    choices.append(r"[^.]*".join(re.escape(piece) for piece in word.strip().split("*")))
            out += "(?:" + "|".join(choices) + ")"
    return out


def _numbers(low: int, high: int, pattern: str) -> str:
    if high < low:
        raise SiteError(f"site pattern {pattern!r}: the range {low}-{high} runs backwards")
    # Blocks of 10, 100, … numbers that share their first digits, so that a wide range is a short expression.
    blocks = []
    while low <= high:
        size = 1
        while low >= size * 10 and low % (size * 10) == 0 and low + size * 10 - 1 <= high:
            size *= 10
        blocks.append(str(low // size) + r"\d" * (len(str(size)) - 1))
        low += size
    return "(?:" + "|".join(blocks) + ")"


def _from_the_end(pattern: str, n_layers: int) -> str:
    return re.sub(
        r"(?<=blocks\.)-(\d+)(?=\.|$)",
        lambda m: str(n_layers - int(m.group(1))) if int(m.group(1)) <= n_layers else m.group(0),
        pattern,
    )


def select(
    at: str | Sequence[str], names: Iterable[str], n_layers: int = 0, absent: Callable[[], str] = str
) -> list[str]:
    """The names that the patterns mean, without repeats, in the order of `names` for each pattern.

    Args:
        at: one name or pattern, or several.
        names: every name that exists.
        n_layers: number of blocks, for negative layer numbers.
        absent: gives a sentence about what this model has, added to the error.
    Raises:
        SiteError: if a name or pattern matches nothing; it offers the nearest names.
    """
    names = list(names)
    known = set(names)
    if isinstance(at, str):
        at = [at]
    if not at:
        raise SiteError("no sites given; pass a name such as 'blocks.0.resid_post' or a pattern such as 'blocks.*'")
    chosen: dict[str, None] = {}
    for pattern in at:
        if not isinstance(pattern, str):
            raise SiteError(f"a site is a text such as 'blocks.0.resid_post', not {type(pattern).__name__}")
        wanted = _from_the_end(pattern, n_layers)
        if wanted in known:
            chosen[wanted] = None
            continue
        matches = translate(wanted).fullmatch if is_pattern(wanted) else None
        hits = [n for n in names if matches(n)] if matches is not None else []
        if not hits:
            raise SiteError(f"{unknown('site', pattern, names)} {absent()}".rstrip())
        chosen.update(dict.fromkeys(hits))
    return list(chosen)
