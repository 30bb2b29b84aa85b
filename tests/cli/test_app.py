"""`workbench app` says what is missing before it serves anything."""

import sys

import pytest

from workbench.cli import main
from workbench.show.dashboard import app


@pytest.mark.parametrize(
    "arguments", [["missing.trace"], ["--voice", "nowhere"], ["--folder", "nowhere"], ["--device", "tpu"]]
)
def test_a_wrong_argument_is_one_line(arguments, capsys):
    assert main(["app", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and arguments[-1] in said


def test_without_voila_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "voila.app", None)
    assert main(["app", "--no-browser"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install 'cosyvoice-workbench[app]'" in said


def test_paths_are_absolute_and_a_run_of_a_log_keeps_its_number(tmp_path, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(app, "serve", lambda *arguments: given.append(arguments[:4]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.log").touch()
    assert main(["app", "server.log#2", "--folder", ".", "--no-browser"]) == 0
    assert given == [([str(tmp_path / "server.log#2")], None, "cpu", str(tmp_path))]
