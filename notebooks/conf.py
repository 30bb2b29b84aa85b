"""The book: Sphinx turns the notebooks, the pages beside them and the docstrings into `output/docs`.

`make docs` builds it, and executes every notebook on the way. The pages need no network: they open from
file://, with the sound and the static twins of the widgets.
"""

import re
import shutil
import sys
from operator import attrgetter
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent.parent))  # document this checkout, not an installed copy

import workbench as wb

NAMES = re.compile(r"^   ([A-Za-z_][\w.]*)$", re.MULTILINE)  # the lines of an autosummary that name things
WIDGET = "application/vnd.jupyter.widget-view+json"

project = "Workbench"
author = "The Workbench authors"
release = version = wb.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
smartquotes = False  # quotes in the docs are often code
default_role = "py:obj"  # `name` in a docstring is code, and a link where the book knows it
exclude_patterns = ["**.ipynb_checkpoints", "output"]

html_theme = "pydata_sphinx_theme"
html_title = f"Workbench {release}"
html_context = {"default_mode": "auto"}  # light or dark, as the reader has it
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # a summary is fetched from the page, which file:// forbids
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "navigation_with_keys": False,  # the arrow keys move the players
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": [],
    "footer_end": [],
}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # the outputs are those of the code as it is now
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell
nb_ipywidgets_js = {}  # by default two scripts of a CDN
nb_mime_priority_overrides = [("html", WIDGET, None)]  # show the static twin instead

toc_object_entries_show_parents = "hide"
autodoc_preserve_defaults = True  # save=NOTHING, as it is written
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc shows the types that the docstrings state
autosummary_generate = False  # `add_details` writes the entries into the page of their room
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False


for module in ("faults", "metrics", "plots", "widgets"):  # documented under their public names
    sys.modules[f"workbench.{module}"] = getattr(wb, module)


def add_details(app: Sphinx, page: str, source: list[str]) -> None:
    """Append an entry with the docstring for each name that the tables of a reference page list."""
    if ".. autosummary::" not in source[0]:
        return
    entries = ["", "Details", "-------", ""]
    for name in NAMES.findall(source[0]):
        thing = attrgetter(name)(wb)
        module, _, last = f"workbench.{name}".rpartition(".")
        kind = "class" if isinstance(thing, type) else "function"
        entries.append(f".. auto{kind}:: {module}::{last}")
        if kind == "class":
            entries.append("   :members:")
            if fields := ", ".join(getattr(thing, "_fields", ())):  # of a tuple: "Alias for field number 0"
                entries.append(f"   :exclude-members: {fields}")
            bases = thing.__mro__[1:-1]
            if bases and all(base.__module__.startswith("workbench") for base in bases):
                entries.append("   :inherited-members:")  # not those of a tuple, an error or a widget
        entries.append("")
    source[0] += "\n".join(entries)


def link_pages(app: Sphinx, path: Path, page: str, text: list[str]) -> None:
    """Let the READMEs of measured figures link to each other's pages in the book."""
    text[0] = re.sub(r"\.\./(accuracy|speed)/README\.md", r"\1.md", text[0])


def drop_live_widgets(app: Sphinx, doctree: nodes.document) -> None:
    """Keep the static twin of each widget; drop progress bars, which have none, and the widgets' state."""
    for output in list(doctree.findall(nodes.container)):
        kinds = [child.get("mime_type") for child in output if isinstance(child, nodes.Element)]
        if WIDGET in kinds and "text/html" not in kinds:
            output.parent.remove(output)
    by_page = getattr(app.env, "nb_metadata", {})
    by_page.get(app.env.docname, {}).get("js_files", {}).pop("ipywidgets_state", None)


def copy_report(app: Sphinx, error: Exception | None) -> None:
    """Copy the report that notebook 08 writes and links to."""
    report = Path(app.srcdir) / "output" / "report.html"
    if error is None and report.is_file():
        (Path(app.outdir) / "output").mkdir(exist_ok=True)
        shutil.copyfile(report, Path(app.outdir) / "output" / report.name)


def setup(app: Sphinx) -> None:
    """Register the handlers above; Sphinx calls this."""
    app.connect("source-read", add_details)
    app.connect("include-read", link_pages)
    app.connect("doctree-read", drop_live_widgets)
    app.connect("build-finished", copy_report)
