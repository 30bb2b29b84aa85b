"""The book builds without a warning, its links lead somewhere, and it opens from file:// without a network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import workbench as wb
from tests.book import NOTEBOOKS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the kernel client's own
]


class Links(HTMLParser):
    """Anchors, links and loaded files of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.anchors |= {named[name] for name in ("id", "name") if named.get(name)}
        if tag == "a" and named.get("href"):
            self.links.add(named["href"])
        for name in ("src", "href"):
            if tag in ("script", "img", "audio", "source", "iframe", "link") and named.get(name):
                self.loaded.add(named[name])


@pytest.fixture(scope="module")
def docs(book, tmp_path_factory):
    """The built book: as `make docs` builds it, from notebooks that the tests executed already."""
    for path in NOTEBOOKS:
        book.executed(path.stem)
    out = tmp_path_factory.mktemp("docs") / "html"
    sphinx = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-W",
        "--keep-going",
        "-D",
        "nb_execution_mode=off",
    ]
    done = subprocess.run([*sphinx, book.pages, out], capture_output=True, text=True, cwd=book.pages.parent)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(docs):
    return {
        path: Links(path)
        for path in sorted(docs.rglob("*.html"))
        if not {"output", "_static"} & set(path.relative_to(docs).parts)
    }


def test_every_notebook_and_page_is_in_the_book(docs, book):
    sources = [*book.pages.rglob("*.ipynb"), *book.pages.rglob("*.md"), *book.pages.rglob("*.rst")]
    assert sources
    for path in sources:
        assert (docs / path.relative_to(book.pages)).with_suffix(".html").is_file()


def test_every_link_leads_somewhere(pages):
    broken = []
    for path, found in pages.items():
        for link in found.links | found.loaded:
            url = urlsplit(link)
            if url.scheme:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.is_file() or (
                url.fragment and target in pages and unquote(url.fragment) not in pages[target].anchors
            ):
                broken.append((path.name, link))
    assert not broken


def test_no_page_loads_anything_from_outside(pages):
    loaded = {address for found in pages.values() for address in found.loaded}
    assert not [address for address in loaded if urlsplit(address).scheme not in ("", "data")]


def test_every_public_name_has_one_entry(pages):
    anchors = [
        anchor for path, found in pages.items() if path.parent.name == "reference" for anchor in found.anchors
    ]
    modules = [name for name in wb.__all__ if type(getattr(wb, name)).__name__ == "module"]
    names = [f"workbench.{name}" for name in wb.__all__ if name not in modules]
    names += [f"workbench.plots.{name}" for name in wb.plots.__all__]
    assert {name: anchors.count(name) for name in names} == dict.fromkeys(names, 1)
    for module in modules:
        assert any(anchor.startswith(f"workbench.{module}.") for anchor in anchors), module


@pytest.mark.browser
@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("index", "img[src*=steps]"),
        ("00-start-here", "canvas.base[aria-label]"),
        ("reference/trace", "dt[id='workbench.Trace']"),
    ],
)
def test_page_opens_without_a_network(docs, page, name, shown):
    page.goto((docs / f"{name}.html").as_uri())
    page.locator(shown).first.wait_for()
    assert "Workbench" in page.title()
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # a phone scrolls in one direction


@pytest.mark.browser
def test_search_finds_a_function_without_a_network(docs, page):
    page.goto((docs / "search.html").as_uri() + "?q=find_glitches")
    page.locator("#search-results a[href*='workbench.find_glitches']").first.wait_for()


def test_outputs_hold_no_live_widgets_and_no_progress_bars(pages):
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert "vnd.jupyter.widget" not in text and not re.search(r"(?:token|step|it)/s\]|\bHBox\(", text), (
            path.name
        )
