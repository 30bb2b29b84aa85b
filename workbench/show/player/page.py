"""The page side of the player: its ES module, and HTML that plays without a kernel.

A notebook or a report is one file and cannot load others, so the scripts, the style and the markup of this
folder become one module without imports. A widget sends it to the page; a static page holds it inline.
"""

import json
import re
from html import escape
from pathlib import Path
from uuid import uuid4

from workbench.show.player.payload import letter_of

FOLDER = Path(__file__).parent / "web"
SCRIPTS = (
    *("data.js", "axis.js", "sound.js", "analysis.js", "compute.js", "rows.js", "picture.js", "controls.js"),
    *("blind.js", "sync.js", "input.js", "player.js"),
)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _without_comments(script: str) -> str:
    """Return a script without the comments that fill whole lines: they are a third of a page's player."""
    return re.sub(r"^ *(/\*.*?\*/|//[^\n]*)\n", "", script, flags=re.DOTALL | re.MULTILINE)


def _read_module() -> str:
    """Return the ES module: style and markup as two constants, then the scripts."""
    style = f"const STYLE = {json.dumps(_without_comments(_read('player.css')))};"
    markup = f"const MARKUP = {json.dumps(_read('player.html'))};"
    scripts = [_without_comments(_read(name)) for name in SCRIPTS]
    return "\n".join([style, markup, *scripts])


MODULE = _read_module()


def static_player(data: dict) -> str:
    """Return HTML that plays the traces of `player_data` without a kernel, a network or other files.

    The module is inline, as `<script type="module">`: it runs from file://, in an exported notebook and in a
    report. The alternatives fail there: pages may forbid an address made of a Blob, and an iframe cannot take
    the height that it needs. Sound and pictures stand outside the script, as `<audio>` and `<img>`, which
    remain where scripts do not run.

    Parameters
    ----------
    data : dict
        What `player_data` returned.

    Returns
    -------
    str
        A piece of HTML; text of the traces is escaped.
    """
    identifier = uuid4().hex
    without_media = []
    for trace in data["traces"]:
        without_media.append({key: value for key, value in trace.items() if key not in ("sound", "mel")})
    literal = json.dumps(data | {"traces": without_media}, allow_nan=False)
    literal = literal.replace("<", "\\u003c")  # so that no name can close the script element
    warnings = "".join(f"<p>\u26a0 {escape(warning)}</p>" for warning in data["warnings"])
    figures = "".join(_figure(letter_of(i), trace, data["limit"]) for i, trace in enumerate(data["traces"]))
    return (
        f'<div class="workbench-player" data-player="{identifier}">{warnings}{figures}</div>\n'
        f'<script type="module">\n{MODULE}\nwake("{identifier}", {literal});\n</script>'
    )


def _figure(letter: str, trace: dict, limit: float) -> str:
    """Return what is shown of a trace where scripts do not run."""
    name = escape(trace["name"])
    findings = "; ".join(escape(finding["text"]) for finding in trace["findings"])
    peak = "silent" if trace["peak_db"] is None else f"peak {trace['peak_db']:.1f} dBFS"
    levels = f"{trace['rate']} Hz, {peak}, {trace['clipped']} clipped at \u00b1{limit:g}"
    caption = f"{letter} \u00b7 {name} ({levels})" + (f": {findings}" if findings else "")
    return (
        '<figure style="margin:8px 0;max-width:1100px">'
        f"<figcaption>{caption}</figcaption>"
        f'<img alt="mel of {name}" src="{trace["mel"]}" style="width:100%;height:120px;display:block">'
        f'<audio controls preload="none" aria-label="{name}" style="width:100%" '
        f'src="{trace["sound"]}"></audio>'
        "</figure>"
    )
