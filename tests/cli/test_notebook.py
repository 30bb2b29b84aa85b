"""`workbench notebook`: errors before a kernel starts; tests/show/report/test_notebook.py runs notebooks."""

from workbench.cli import main


def test_an_unknown_name_lists_the_notebooks_of_the_book(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they are found from any folder
    assert main(["notebook", "nothing"]) == 2
    assert "00-start-here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_parameter_without_a_value_is_an_error(capsys):
    assert main(["notebook", "start-here", "-p", "seed"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err
