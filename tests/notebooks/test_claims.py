"""The figures and claims of the case are well formed, and every claim has its verdict in the notebook."""

import nbformat
import pandas as pd
import pytest

from notebooks.claims import CONFIRMED, OPEN, REFUTED, Claims
from tests.paths import ROOT
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.trace.schema import FIELDS, STATS, dims_of

CASE = ROOT / "data" / "case"
NOTEBOOK = ROOT / "notebooks" / "07-verdicts.ipynb"


@pytest.fixture(scope="module")
def figures():
    return pd.read_csv(CASE / "figures.csv", keep_default_na=False)


@pytest.fixture
def claims():
    return Claims.load(CASE / "claims.csv")


def test_figures_name_fields_steps_and_statistics(figures):
    assert list(figures) == ["line", "side", "run", "field", "step", "statistic", "value"]
    assert set(figures["side"]) == {"python", "native"}
    assert not figures.duplicated(["line", "side", "run", "field", "step", "statistic"]).any()
    for row in figures.itertuples():
        if row.statistic == "rtf":
            assert row.field == row.step == ""
            continue
        assert row.field in FIELDS
        assert row.statistic in STATS
        loops = dims_of(row.field)[0] in ("knot", "step")
        assert row.step in map(str, range(1, Options().n_timesteps + 1)) if loops else row.step == ""


def test_printed_statistics_of_a_tensor_do_not_contradict_each_other(figures):
    keys = ["side", "run", "field", "step"]
    for _, group in figures[figures["field"] != ""].groupby(keys):
        stats = dict(zip(group["statistic"], group["value"].astype(float), strict=True))
        low, high = stats.get("min", -float("inf")), stats.get("max", float("inf"))
        assert low <= stats.get("mean", low) <= high
        assert 0 <= stats.get("mean_abs", 0) <= max(-low, high)
    sizes = figures.query("statistic == 'mean_abs'")["value"]
    assert (sizes.astype(float) > 0).all()


def test_claims_are_unique_sentences_in_the_order_of_the_case(claims):
    table = claims.table
    assert len(table) >= 15
    assert table["claim"].str.endswith(".").all() and table["claim"].is_unique
    assert table["line"].between(1, 2234).all() and table["line"].is_monotonic_increasing
    assert (table["measured"] != "").all()


def test_every_claim_has_one_verdict_in_the_notebook(claims):
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert {name: code.count(f'"{name}",') for name in claims.table.index} == dict.fromkeys(
        claims.table.index, 1
    )
    rules = [part.split("holds=")[1] for part in code.split("claims.settle(")[1:]]
    assert not any(rule.startswith(("True", "False", "None")) for rule in rules)


def test_a_verdict_follows_from_whether_the_claim_holds(claims):
    assert claims.settle("mu-equal", True, "compare", "0 apart").state == CONFIRMED
    assert claims.settle("mu-equal", False, "compare", "1 apart").state == REFUTED
    verdict = claims.settle("mu-equal", None, "compare", "1 apart", "workbench compare")
    assert verdict.state == OPEN and verdict.reason == "compare: 1 apart. To decide it: workbench compare"
    assert "&lt;" in claims.settle("mu-equal", True, "a < b", "")._repr_html_()


def test_unknown_and_missing_claims_are_refused(claims):
    with pytest.raises(WorkbenchError, match="no-such"):
        claims.settle("no-such", True, "", "")
    with pytest.raises(WorkbenchError, match="what to run"):
        claims.settle("mu-equal", None, "compare", "1 apart")
    for name in claims.table.index[1:]:
        claims.settle(name, True, "compare", "0 apart")
    with pytest.raises(WorkbenchError, match=claims.table.index[0]):
        claims.to_frame()
    claims.settle(claims.table.index[0], False, "compare", "1 apart")
    frame = claims.to_frame()
    assert list(frame.index) == list(claims.table.index)
    assert list(frame["verdict"])[:2] == [REFUTED, CONFIRMED]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,claim\na,b\n", "lack line"),
        ("id,claim,line,measured\na,b,1,c\na,d,2,e\n", "twice: a"),
        ("", "read"),
    ],
)
def test_a_bad_table_is_refused(tmp_path, text, said):
    (tmp_path / "claims.csv").write_text(text)
    with pytest.raises(WorkbenchError, match=said):
        Claims.load(tmp_path / "claims.csv")
