"""`Report` and `render`: sections, evidence, escaped text, files without outside requests."""

import base64
import json
import math
import re
from html.parser import HTMLParser

import matplotlib
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.show.report.figures import DARK, LIGHT, page_image
from workbench.show.report.render import MAX_ROWS, image_address, render
from workbench.show.report.report import Report
from workbench.trace.trace import Trace

HOSTILE = '</script><script>alert(1)</script>"><img src=x onerror=alert(1)>'


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.elements = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def evidence(page):
    return json.loads(re.search(r'<script type="application/json" id="evidence">(.*?)</script>', page)[1])


def plain(points=3):
    figure = Figure()
    ax = figure.subplots()
    ax.plot(range(points))
    ax.set_title("a line")
    return ax


def test_sections_have_anchors_and_copy_buttons():
    page = Report("The glitch", "one step").add("First.\n\nSecond.", "Said").add("Third.", "Said").html()
    elements = Elements(page)
    assert [a["href"] for a in elements.of("a")] == ["#said", "#said-2"]
    assert [s["id"] for s in elements.of("section")] == ["said", "said-2"]
    assert [b["data-copy"] for b in elements.of("button") if "data-copy" in b] == [
        "Said\nFirst.\n\nSecond.",
        "Said\nThird.",
    ]
    assert "<p>First.</p><p>Second.</p>" in page


def test_evidence_is_json_with_nan_as_text():
    table = pd.DataFrame(
        {"x": [1.5, math.nan], "n": pd.array([1, None], dtype="Int64"), "what": ["a", HOSTILE]}
    )
    page = Report("r").add(table, "Numbers").html()
    assert evidence(page)["numbers"] == [
        {"x": 1.5, "n": 1, "what": "a"},
        {"x": "nan", "n": None, "what": HOSTILE},
    ]


def test_hostile_text_runs_nothing():
    table = pd.DataFrame({HOSTILE: [HOSTILE]}, index=[HOSTILE])
    ax = plain()
    ax.set_title(HOSTILE)
    report = Report(HOSTILE, HOSTILE)
    for thing in (HOSTILE, table, ax, [HOSTILE]):
        report.add(thing, HOSTILE, HOSTILE)
    elements = Elements(report.html())
    assert len(elements.of("script")) == 2  # the evidence, and the copy buttons
    assert all(image["src"].startswith("data:") and "onerror" not in image for image in elements.of("img"))


def test_page_makes_no_outside_request(tmp_path):
    page = Report("r").add(plain(), "Figure").save(tmp_path / "sub" / "r.html").read_text()
    addresses = [v for _, a in Elements(page).elements for k, v in a.items() if k in ("src", "href")]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["r.html"]


def test_stated_size_is_the_size_of_the_file(tmp_path):
    path = Report("r").add("x" * 3_000_000).save(tmp_path / "r.html")
    said = float(re.search(r"One file of ([\d.]+) MB", path.read_text())[1])
    assert said == pytest.approx(path.stat().st_size / 1e6, abs=0.02)


def test_figures_are_svg_or_png_where_that_is_smaller_than_a_large_svg():
    assert image_address(plain().figure).startswith("data:image/svg+xml")
    many = Figure()
    many.subplots().scatter(range(5000), range(5000))
    assert image_address(many).startswith("data:image/png")


def test_panels_are_arranged_once_for_both_pages_and_as_before_afterwards(monkeypatch):
    figure = Figure(layout="constrained")
    figure.subplots(1, 2)[0].set_ylabel("mel L1 [ln]")
    engine = figure.get_layout_engine()
    arranged = []
    monkeypatch.setattr(engine, "execute", lambda figure, run=engine.execute: arranged.append(run(figure)))
    page_image(figure)
    assert len(arranged) == 1 and figure.get_layout_engine() is engine
    assert not matplotlib._pylab_helpers.Gcf.figs  # drawn beside pyplot's list of open ones


def test_long_tables_are_cut_but_not_the_evidence():
    table = pd.DataFrame({"x": range(MAX_ROWS + 5)})
    look = render(table)
    assert look.html.count("<tr") == MAX_ROWS + 1 and len(look.evidence) == MAX_ROWS + 5
    assert f"the first {MAX_ROWS} of {MAX_ROWS + 5} rows" in look.html


def test_anything_else_shows_its_repr():
    class Odd:
        def __repr__(self):
            return "<odd>"

    class Html:
        def _repr_html_(self):
            return "<b>bold</b>"

        def to_frame(self):
            return pd.DataFrame({"a": [1]})

    assert render(Odd()).html == "<pre>&lt;odd&gt;</pre>"
    look = render(Html())
    assert "<b>bold</b>" in look.html and look.evidence == [{"a": 1}]


def test_failed_save_leaves_no_partial_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match="could not be written"):
        Report("r").save(tmp_path / "file" / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_trace_is_rendered_with_player_and_table():
    wav = 0.1 * torch.sin(torch.arange(12000) / 20)
    look = render(Trace({"hift/wav": wav}, {"text": HOSTILE}))
    assert "data:audio/flac" in look.html and "<script>alert" not in look.html
    assert look.evidence[0]["field"] == "hift/wav"
    silent = render(Trace({"flow/mel": torch.zeros(80, 5)}, {}))
    assert "<audio" not in silent.html and "flow/mel" in silent.html


def test_the_verdict_stands_first_with_the_colour_of_its_state():
    page = Report("r", "It differs.\nMore.", state="bad").add("text", "Section").html()
    assert '<div class="lead bad">' in page and "look here" in page
    assert page.index("It differs.") < page.index('<nav aria-label="Contents">') < page.index("<main>")
    assert 'class="state"' not in Report("r", "It differs.").html()
    with pytest.raises(WorkbenchError, match="state is 'wrong'; expected one of"):
        Report("r", state="wrong")


def test_a_figure_has_a_version_for_dark_pages_and_is_not_changed_by_it():
    ax = Figure().subplots()
    ax.plot([1, 2], color="black")
    before = [artist.get_color() for artist in (*ax.get_lines(), ax.xaxis.label)]
    page = Report("r").add(ax).html()
    assert "screen and (prefers-color-scheme: dark)" in page and 'class="enlarge"' in page
    assert [artist.get_color() for artist in (*ax.get_lines(), ax.xaxis.label)] == before


def test_a_dark_drawing_has_light_ink_and_the_same_images():
    ax = Figure().subplots()
    ax.imshow([[0.0, 1.0]])
    ax.plot([0, 1], color="red")
    ax.set_title("black")
    white, dark = (
        base64.b64decode(address).decode()
        for address in re.findall(r"data:image/svg\+xml;base64,([^\" ]+)", page_image(ax.figure))[::-1]
    )
    assert not re.search("#000000|#ffffff", dark) and "#ff0000" in dark
    # Letters name no colour of their own: they are black, or as the root says.
    [letters] = re.findall(r'<g id="text_\d+">\s*<!-- black -->\s*<g ([^>]*)>', dark)
    assert "fill" not in letters and re.search(r"<svg [^>]*", dark)[0].count(f'fill="{LIGHT}"') == 1
    assert dark.count(DARK) == white.count("#ffffff") > 0
    assert re.findall(r'href="(data:[^"]+)', dark) == re.findall(r'href="(data:[^"]+)', white) != []
