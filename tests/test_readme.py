"""What the documentation shows is what happens."""

from __future__ import annotations

import re

import pytest


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_python_of_the_readme_runs(root, tmp_path, monkeypatch):
    (code,) = code_blocks((root / "README.md").read_text(), "python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "effect.zarr").is_dir()
    assert not names["effect"].table().empty


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/design.md"])
def test_links_to_files_lead_somewhere(root, page):
    path = root / page
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert missing == []


def test_commands_of_the_readme_exist(root):
    from typer.main import get_command

    from actinium.cli.app import app

    named = set(re.findall(r"^actinium (\w+)", (root / "README.md").read_text(), flags=re.MULTILINE))
    assert named == set(get_command(app).commands)
