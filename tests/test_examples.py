"""The examples in docstrings run as written, and every public name has one and names its parameters."""

import doctest
import importlib
import inspect

import matplotlib.pyplot as plt
import pytest
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate

import workbench as wb
from tests.paths import ROOT

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# Of numpydoc: no docstring; parameters undocumented or unknown; no Returns; no Yields.
ERRORS = {"GL08", "PR01", "PR02", "RT01", "YD01"}
ROOMS = ("plots", "widgets")  # modules among the public names, whose own functions are public too


def public():
    """Return the public functions and classes: {name in `wb`: object}."""
    found = {name: getattr(wb, name) for name in wb.__all__ if name not in ROOMS}
    for room in ROOMS:
        module = getattr(wb, room)
        for name in getattr(module, "__all__", dir(module)):
            value = getattr(module, name)
            if getattr(value, "__module__", "").startswith(module.__name__):
                found[f"{room}.{name}"] = value
    return {
        name: value for name, value in found.items() if inspect.isroutine(value) or inspect.isclass(value)
    }


PUBLIC = public()


def examples():
    """Return the doctests of the package, training apart."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = []
    for path in sorted((ROOT / "workbench").rglob("*.py")):
        if "train" not in path.parts and ">>>" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            found += [test for test in finder.find(importlib.import_module(name), name) if test.examples]
    return found


EXAMPLES = examples()


@pytest.fixture(scope="module")
def given(voice, pipe, utt, recorded):
    """The names that every example may use."""
    return {"wb": wb, "voice": voice, "pipe": pipe, "utt": utt, "trace": recorded}


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name.removeprefix("workbench."))
def test_an_example_runs_as_written(example, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    shown = []
    # An example of a public name stands alone; one of an inner name may use the names of its module.
    names = given if is_public(example.name) else example.globs | given
    test = doctest.DocTest(
        example.examples, dict(names), example.name, example.filename, example.lineno, example.docstring
    )
    failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=shown.append)
    plt.close("all")
    assert not failed, "".join(shown)


def is_public(dotted):
    """Whether a doctest is that of a public name or of a method of one."""
    return any(
        dotted == inner or dotted.startswith(f"{inner}.")
        for inner in (f"{value.__module__}.{value.__qualname__}" for value in PUBLIC.values())
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example(name):
    has_one = ">>>" in (inspect.getdoc(PUBLIC[name]) or "")
    assert has_one, f"wb.{name} has no Examples section"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_documents_its_parameters(name):
    value = PUBLIC[name]
    if inspect.isclass(value):
        sections = NumpyDocString(inspect.getdoc(value))
        takes = inspect.signature(value).parameters if not issubclass(value, Exception) else {}
        assert not takes or sections["Parameters"] or sections["Attributes"], f"wb.{name}: no Parameters"
        return
    found = validate(f"{value.__module__}.{value.__qualname__}")["errors"]
    assert [message for code, message in found if code in ERRORS] == []
