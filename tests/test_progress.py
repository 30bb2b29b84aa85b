"""A progress bar leaves nothing behind, neither in a terminal nor in the file of a notebook."""

import io

import nbclient
import nbformat
import pytest

from tests.paths import ROOT
from workbench.progress import ProgressBar

BAR = """import sys, time
sys.path.insert(0, {root!r})
from workbench.progress import ProgressBar
for step in ProgressBar(range(4), "steps", leave=False, delay=0.05, mininterval=0.01):
    time.sleep(0.1)
print("done")"""


def test_a_bar_in_a_terminal_counts_and_is_wiped_out():
    shown = io.StringIO()
    assert list(ProgressBar(range(3), "steps", leave=False, file=shown, mininterval=0)) == [0, 1, 2]
    assert "steps" in shown.getvalue() and not shown.getvalue().rpartition("\r")[2].strip()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bar_in_a_notebook_leaves_no_widget_in_the_file():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(BAR.format(root=str(ROOT)))])
    nbclient.NotebookClient(notebook, timeout=60).execute()
    shown = [output for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    assert [output.data for output in shown] == [{"text/html": "", "text/plain": ""}]
    assert notebook.cells[0].outputs[-1].text == "done\n"
