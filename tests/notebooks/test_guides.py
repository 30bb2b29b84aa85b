"""The examples of the guides: Python runs as written, shell lines name verbs and options that exist."""

import re
import shlex

import pytest
import typer

import workbench as wb
from tests.paths import ROOT
from workbench.cli.main import app

BLOCK = re.compile(r"(?P<rule><!-- not run: [^\n]* -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


def examples(path):
    """The Python blocks of a page, less those that say why they are not run."""
    return [block["code"] for block in BLOCK.finditer(path.read_text(encoding="utf-8")) if not block["rule"]]


PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "notebooks").rglob("*.md")),
    *sorted((ROOT / "data").rglob("*.md")),
]
FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`(workbench [^`\n]*)`")
GUIDES = [path for path in sorted((ROOT / "notebooks").glob("*.md")) if examples(path)]


def test_the_guides_have_examples():
    named = {"diagnosis", "many-runs", "prompts", "see-and-hear", "streaming", "traces"}
    assert named == {path.stem for path in GUIDES}


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


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_lines_name_verbs_and_options_that_exist(path):
    text = path.read_text(encoding="utf-8")
    lines = [line for block in FENCED.findall(text) for line in block.splitlines()]
    for line in [line for line in lines if line.startswith("workbench ")] + INLINE.findall(
        FENCED.sub("", text)
    ):
        words = shlex.split(line, comments=True)[1:]
        command = typer.main.get_command(app)
        while words and hasattr(command, "commands") and not words[0].startswith("-") and words[0] != "VERB":
            assert words[0] in command.commands, words
            command = command.commands[words.pop(0)]
        known = {
            name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
        } | {"--help", "-h"}
        assert {word for word in words if word.startswith("-")} <= known, words
