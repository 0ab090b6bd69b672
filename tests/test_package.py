"""What the package promises before anything is computed: light imports, the house, its version."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version

import pytest

import actinium

HEAVY = ("torch", "transformers", "matplotlib", "pandas", "xarray", "scipy", "sklearn")


def run(*arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False, **settings)


@pytest.mark.parametrize(
    "code",
    [
        "import actinium",
        "import actinium; actinium.papers.catalogue()",
        "import actinium.cli.app",
        "import actinium; actinium.errors.ActiniumError",
    ],
)
def test_light_imports_load_no_heavy_library(code):
    probe = f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = run(sys.executable, "-c", probe)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_public_name_resolves():
    for name in actinium.__all__:
        assert getattr(actinium, name) is not None


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="recrod"):
        actinium.recrod  # noqa: B018


def test_version_is_that_of_the_installed_distribution():
    assert actinium.__version__ == version("actinium")


def test_console_script_is_the_command_line():
    (script,) = entry_points(group="console_scripts", name="actinium")
    from actinium.cli.app import main

    assert script.load() is main


def test_rooms_import_only_from_rooms_below_them(root):
    done = run(str(root_tool("lint-imports")), "--no-cache", cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_import_contract_forbids_an_upward_import(root, tmp_path):
    """The same contract on a package whose core imports its command line."""
    package = tmp_path / "actinium"
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rooms = {
        "/".join([*contract["containers"][0].split(".")[1:], part])
        for contract in contracts
        for layer in contract["layers"]
        for part in re.split(r" *[|:] *", layer)
        if not part.startswith("(")
    }
    for room in sorted(rooms):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "core" / "__init__.py").write_text("import actinium.cli\n")
    (tmp_path / "pyproject.toml").write_bytes((root / "pyproject.toml").read_bytes())
    probe = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as f; f()"
    done = run(sys.executable, "-c", probe, "--no-cache", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "actinium.core is not allowed to import actinium.cli" in done.stdout


def test_constraints_pin_every_dependency(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    names = {canonical(r) for r in wanted} - {"actinium"}
    pins = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line for line in pins)
    assert names <= {canonical(line) for line in pins}


def canonical(requirement: str) -> str:
    name = requirement
    for stop in "[<>=!~; ":
        name = name.partition(stop)[0]
    return name.lower().replace("_", "-")


def root_tool(name: str):
    from pathlib import Path

    return Path(sys.executable).with_name(name)
