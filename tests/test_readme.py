"""The README is short, and its blocks run as written, in order, in a fresh folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?P<rule><!-- not run: [^\n]* -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL)
SECTIONS = [
    "Install and demo",
    "First cell",
    "I want to ...",
    "The released checkpoint",
    "The house",
    "Contributing",
    "Licence",
]


def test_readme_is_short_and_has_its_sections():
    assert len(README.encode()) <= 7168
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == SECTIONS


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_a_block_that_is_not_run_says_why():
    blocks = list(BLOCK.finditer(README))
    assert {block["language"] for block in blocks} == {"python", "sh"}
    left_out = [block["code"] for block in blocks if block["rule"]]
    assert len(left_out) == 2
    assert "make demo" in left_out[0] and "Fun-CosyVoice3" in left_out[1]


@pytest.mark.slow
@pytest.mark.process
def test_blocks_run_as_written(tmp_path):
    bin_folder = Path(sys.executable).parent  # where `workbench` lies
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    commands = {"python": [sys.executable, "-c"], "sh": ["bash", "-euo", "pipefail", "-c"]}
    for block in BLOCK.finditer(README):
        if not block["rule"]:
            command = [*commands[block["language"]], block["code"]]
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{block['code']}\n{done.stdout}\n{done.stderr}"
    assert {"report.html", "ten.trace", "one.trace"} <= {
        path.name for path in (tmp_path / "output").iterdir()
    }
