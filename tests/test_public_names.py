"""The public names: there is one table of them, it is what editors see, and importing the package is quick."""

import ast
import subprocess
import sys

import pytest

import workbench as wb
from tests.paths import ROOT


def test_editors_see_the_names_of_the_table():
    tree = ast.parse((ROOT / "workbench" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for node in block.body:
        for alias in node.names:
            is_module = alias.name in wb.MODULES
            seen[alias.name] = f"{node.module}.{alias.name}" if is_module else node.module
    assert seen == wb.PUBLIC


@pytest.mark.parametrize("name", wb.PUBLIC)
def test_a_public_name_is_found_and_documented(name):
    value = getattr(wb, name)
    assert value is not None
    assert name in ("NOTHING", "SUMMARY", "EVERYTHING") or value.__doc__


def test_tab_offers_the_public_names_alone():
    assert set(dir(wb)) == {*wb.__all__, "__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        wb.no_such_name  # noqa: B018


@pytest.mark.slow
@pytest.mark.process
def test_importing_the_package_imports_nothing_slow():
    code = "import sys, workbench; print([n for n in ('torch', 'pandas', 'matplotlib') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
