"""The lists of dependencies agree, files are small enough to clone, and the README names the commands."""

import re
import subprocess
import tomllib

import pytest
import yaml

import workbench
from tests.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
BUILD = PYPROJECT["build-system"]


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {name_of(line): line.split("==")[1] for line in lines if "==" in line}


def tracked():
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_environment_lists_the_same_dependencies():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert sorted(x for x in listed if not x.startswith("--")) == sorted(PROJECT["dependencies"])


def test_every_dependency_is_pinned():
    wanted = [*PROJECT["dependencies"], *BUILD["requires"]]
    for extra in PROJECT["optional-dependencies"].values():
        wanted += [x for x in extra if name_of(x) != PROJECT["name"]]  # `dev` includes `docs`
    assert {name_of(x) for x in wanted} <= set(pins())
    for requirement in wanted:
        if "==" in requirement:
            assert pins()[name_of(requirement)] == requirement.split("==")[1]


def test_torch_and_torchaudio_match():
    assert pins()["torch"] == pins()["torchaudio"] == "2.11.0"


def test_sizes():
    files = tracked()
    assert all(f.stat().st_size <= 16_000_000 for f in files if f.exists())
    for folder, limit in (("data/voices/tiny", 32_000_000), ("tests/assets", 16_000_000)):
        total = sum(f.stat().st_size for f in files if f.exists() and f.is_relative_to(ROOT / folder))
        assert 0 < total <= limit, folder


def test_readme_names_the_commands():
    readme = (ROOT / "README.md").read_text()
    for words in ("make demo", "make test", "make lab", "Fun-CosyVoice3-0.5B", "Checkpoint.load"):
        assert words in readme


def test_the_version_stands_in_one_place_and_is_cited():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == workbench.__version__ and "version" in PROJECT["dynamic"]
    assert f"## {workbench.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("## Where to add") :]
    for name in re.findall(r"`((?:diagnose|show|speech|trace|cli|data|notebooks|workbench)/[\w/.]*)`", table):
        folders = (ROOT, ROOT / "workbench")
        assert any((folder / name).exists() for folder in folders), name
