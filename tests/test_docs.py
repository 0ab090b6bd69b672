"""The pages show what runs, and the reference finds what it names."""

from __future__ import annotations

import importlib.util
import re

import pytest

PAGES = (
    "applications",
    "circuits",
    "circuits-graph",
    "circuits-knowledge",
    "circuits-reading",
    "circuits-subspaces",
    "compare",
    "features",
    "functions",
    "functions-units",
    "features-attention",
    "features-concepts",
    "features-factorisation",
    "features-interchange",
    "features-reasoning",
    "features-steering-scores",
    "probes",
    "probes-puzzles",
    "probes-signatures",
    "guard",
    "guard-audits",
    "measure",
    "scan",
    "signal",
    "signal-kernels",
    "signal-limits",
    "steering-conditions",
    "steering-methods",
    "steering-vectors",
    "world",
)


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_runs(root, tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    path = root / "docs" / f"{page}.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for number, code in enumerate(blocks):
        exec(compile(code, f"{path.name}, block {number}", "exec"), names)


def test_every_name_of_the_reference_is_where_it_says(root):
    spec = importlib.util.spec_from_file_location("docs_build", root / "docs" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    for room in build.ROOMS:
        named = re.findall(r"^::: (\S+)$", build.api_page(room), flags=re.MULTILINE)
        assert named
        for one in named:
            module, _, name = one.rpartition(".")
            # Not through a lazy room: what documents the name reads files.
            assert name in vars(importlib.import_module(module)), one
