"""The examples of the guides run as written, one after another, on a short utterance."""

import re

import pytest

import workbench as wb
from tests.paths import ROOT

BLOCK = re.compile(r"(?P<rule><!-- not run: [^\n]* -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


def examples(path):
    """The Python blocks of a page, less those that say why they are not run."""
    return [block["code"] for block in BLOCK.finditer(path.read_text(encoding="utf-8")) if not block["rule"]]


GUIDES = [path for path in sorted((ROOT / "notebooks").glob("*.md")) if examples(path)]


def test_the_guides_have_examples():
    assert {"diagnosis", "many-runs", "see-and-hear", "traces"} == {path.stem for path in GUIDES}


@pytest.mark.slow
@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_examples_run_as_written(path, pipe, utt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    voice = pipe.checkpoint
    options = voice.options.but(n_timesteps=7, seed=7)  # the examples replay up to step 6
    trace = pipe.synthesise(utt, options=options, save=wb.EVERYTHING)
    one = pipe.replay(trace, "flow", options.but(n_timesteps=1), save=wb.EVERYTHING)
    given = {"wb": wb, "voice": voice, "pipe": pipe, "utt": utt, "trace": trace, "mine": trace, "theirs": one}
    for code in examples(path):
        exec(compile(code, path.name, "exec"), given)
