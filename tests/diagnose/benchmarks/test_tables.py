"""Tables of figures: CSV files keep the numbers, and the pages in data/ show what the files hold."""

import json

import pandas as pd
import pytest

from tests.paths import ROOT
from workbench.diagnose.benchmarks.accuracy import medians
from workbench.diagnose.benchmarks.speed import Speed
from workbench.diagnose.benchmarks.tables import (
    markdown_table,
    page_with_tables,
    read_csv,
    update_page,
    write_csv,
)
from workbench.errors import WorkbenchError

DATA = ROOT / "data"
PAGES = [DATA / "accuracy" / "README.md", DATA / "speed" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.parent.name)
def test_a_page_shows_what_its_csv_files_hold(page):
    text = page.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert text == page_with_tables(page), (
        f"run workbench.diagnose.benchmarks.tables.update_page({str(page)!r})"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.parent.name)
def test_every_csv_file_is_on_its_page(page):
    text = page.read_text(encoding="utf-8")
    for path in page.parent.glob("*.csv"):
        assert path.name in text, path.name


def test_speed_table_is_that_of_the_measurement():
    found = Speed.from_dict(json.loads((DATA / "speed" / "h200.json").read_text()))
    table = read_csv(DATA / "speed" / "h200.csv")
    pd.testing.assert_frame_equal(table, found.summary(), rtol=1e-3)


@pytest.mark.parametrize("device", ["h200", "cpu"])
def test_deviation_table_has_the_medians_of_its_utterances(device):
    utterances = read_csv(DATA / "accuracy" / f"deviation-{device}-utterances.csv")
    table = read_csv(DATA / "accuracy" / f"deviation-{device}.csv")
    pd.testing.assert_frame_equal(table, medians(utterances), rtol=1e-3)


def test_a_csv_file_keeps_its_table(tmp_path):
    table = pd.DataFrame({"kind": ["a, b", "c|d"], "share": [0.123456, float("nan")], "n": [3, 4]})
    write_csv(table, tmp_path / "t.csv")
    again = read_csv(tmp_path / "t.csv")
    assert again["kind"].tolist() == table["kind"].tolist() and again["n"].tolist() == [3, 4]
    assert again["share"][0] == 0.1235 and pd.isna(again["share"][1])
    assert markdown_table(again).splitlines() == [
        "| kind | share | n |",
        "|---|---|---|",
        "| a, b | 0.123 | 3 |",
        "| c\\|d | | 4 |",
    ]


def test_only_the_tables_of_a_page_are_replaced(tmp_path):
    write_csv(pd.DataFrame({"x": [1]}), tmp_path / "one.csv")
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- table: one.csv -->\nold\n<!-- end of table -->\nbehind\n")
    update_page(page)
    shown = "before\n<!-- table: one.csv -->\n| x |\n|---|\n| 1 |\n<!-- end of table -->\nbehind\n"
    assert page.read_text() == shown
    update_page(page)
    assert page.read_text() == shown


def test_a_missing_csv_file_is_named(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("<!-- table: lost.csv -->\n<!-- end of table -->\n")
    with pytest.raises(WorkbenchError, match=r"lost\.csv is missing"):
        page_with_tables(page)
