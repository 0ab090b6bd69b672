"""What the documentation shows is what happens."""

from __future__ import annotations

import re

import pytest


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_python_of_the_readme_runs(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in code_blocks((root / "README.md").read_text(), "python"):
        exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "effect.zarr").is_dir()
    assert not names["effect"].table().empty


def test_python_of_the_page_on_stores_runs(root, tmp_path, monkeypatch):
    (code,) = code_blocks((root / "docs" / "store.md").read_text(), "python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "docs/store.md", "exec"), names)
    assert len(names["store"]) == int(re.search(r"Store\(activations: ([\d,]+) rows", code)[1].replace(",", ""))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/design.md", "docs/store.md"])
def test_links_to_files_lead_somewhere(root, page):
    path = root / page
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert missing == []


def test_commands_of_the_readme_exist(root):
    from typer.main import get_command

    from actinium.cli.app import app

    named = set(re.findall(r"^actinium ([\w-]+)", (root / "README.md").read_text(), flags=re.MULTILINE))
    assert named == set(get_command(app).commands)


def test_report_shown_in_the_readme_is_that_of_the_demo(root, tmp_path, monkeypatch):
    """Every line but the numbers, which differ in the last digits between processors."""
    from typer.testing import CliRunner

    from actinium.cli.app import app

    (shown,) = re.findall(
        r"^```\n\$ actinium (scan world:lm)\n(.*?)^```$", (root / "README.md").read_text(), re.M | re.S
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, shown[0].split(), env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    said = {masked(line) for line in done.stdout.splitlines()}
    missing = [line for line in shown[1].splitlines() if line.strip() not in ("", "...") and masked(line) not in said]
    assert missing == []
    assert (tmp_path / "actinium-report" / "report.html").is_file()


def masked(line: str) -> str:
    return re.sub(r"\d[\d,]*(\.\d+)?", "#", line.rstrip())
