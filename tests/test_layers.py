"""Rooms import downwards only, and a few other things that the whole package keeps to."""

import ast

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "workbench"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each room may import beside itself and workbench.errors.
BELOW = {
    "trace": set(),
    "speech": {"trace"},
    "diagnose": {"trace", "speech"},
    "show": {"trace", "speech", "diagnose"},
    "train": {"speech"},
}
FRONT = {"__init__.py", "__main__.py", "cli.py"}  # may import every room but train
AUDIO = {"torchaudio", "librosa", "soundfile"}


def room_of(path, package=PACKAGE):
    first = path.relative_to(package).parts[0]
    return None if first.endswith(".py") else first


def imported(tree, path, package=PACKAGE):
    """Dotted names that a file imports, anywhere in it; `from a import b` gives both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["workbench", *path.relative_to(package).parent.parts]
                base = ".".join(
                    [*here[: len(here) - node.level + 1], *([node.module] if node.module else [])]
                )
            if base != "workbench":
                yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in {"import_module", "__import__"}:
                yield str(node.args[0].value)


def wrong_imports(path, package=PACKAGE):
    """Imports that a file may not make."""
    room = room_of(path, package)
    for name in imported(ast.parse(path.read_text()), path, package):
        root, *rest = name.split(".")
        if root != "workbench" or (rest and rest[0] == "errors"):
            continue
        target = rest[0] if rest else None
        if room is None:
            allowed = target != "train" if path.name in FRONT else False
        else:
            allowed = target in BELOW[room] | {room}
        if not allowed:
            yield name


def audio_imports(path, package=PACKAGE):
    if path == package / "speech" / "audio.py" or room_of(path, package) == "train":
        return
    for name in imported(ast.parse(path.read_text()), path, package):
        if name.split(".")[0] in AUDIO:
            yield name


def prints(path, package=PACKAGE):
    if path == package / "cli.py" or room_of(path, package) == "train":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno


def environment(path, package=PACKAGE):
    """Uses of the environment's variables, as `os.x` or imported from os."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found = {node.attr} if node.value.id == "os" else set()
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            found = {alias.name for alias in node.names}
        else:
            continue
        if found & names:
            yield node.lineno


CHECKS = (wrong_imports, audio_imports, prints, environment)


def test_files_are_found_and_rooms_are_known():
    assert PACKAGE / "speech" / "flow.py" in FILES
    assert {room_of(path) for path in FILES} - {None} == set(BELOW)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_package_keeps_to_its_rules(path, check):
    assert list(check(path)) == []


def fake(tmp_path, where, text):
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("trace/a.py", "import workbench.speech.config"),
        ("trace/a.py", "from workbench import show"),
        ("trace/a.py", "from ..speech import config"),
        ("trace/a.py", "from .. import diagnose"),
        ("trace/a.py", "import workbench"),
        ("trace/deep/a.py", "from ...speech import config"),
        ("speech/a.py", "def f():\n    from workbench.diagnose import compare"),
        ("speech/a.py", "from workbench.cli import main"),
        ("speech/a.py", "from workbench import Trace"),
        ("speech/a.py", "import importlib\nimportlib.import_module('workbench.show.plots')"),
        ("diagnose/a.py", "from workbench.show import plots"),
        ("show/a.py", "from workbench.train import loop"),
        ("train/a.py", "from workbench.diagnose import compare"),
        ("cli.py", "from workbench.train.lm import main"),
        ("__init__.py", "from workbench import train"),
        ("errors.py", "from workbench.speech import config"),
    ],
)
def test_imports_upwards_are_seen(tmp_path, where, text):
    assert list(wrong_imports(fake(tmp_path, where, text), tmp_path))


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (
            "trace/a.py",
            "from .schema import FIELDS\nfrom . import record\nfrom workbench.errors import WorkbenchError",
        ),
        (
            "speech/a.py",
            "from workbench.trace import record\nfrom workbench.speech.models.flow import Flow\nimport torch",
        ),
        ("diagnose/a.py", "from workbench import speech, trace, errors"),
        ("show/a.py", "from ..diagnose import compare"),
        ("train/a.py", "from workbench.speech.models.lm import LM\nfrom workbench.train.budget import Run"),
        ("cli.py", "from workbench.show import report"),
        ("__init__.py", "from workbench.show import plots\nfrom .trace.trace import Trace"),
    ],
)
def test_imports_downwards_pass(tmp_path, where, text):
    assert list(wrong_imports(fake(tmp_path, where, text), tmp_path)) == []


@pytest.mark.parametrize(
    ("check", "where", "text", "count"),
    [
        (audio_imports, "show/a.py", "def f():\n    import soundfile", 1),
        (audio_imports, "speech/frontend/frontend.py", "from torchaudio.functional import resample", 2),
        (audio_imports, "speech/frontend/audio.py", "import librosa", 0),
        (audio_imports, "train/a.py", "import torchaudio", 0),
        (prints, "speech/a.py", "print('x')", 1),
        (prints, "speech/a.py", "plt.print('x')  # print('x')", 0),
        (prints, "cli.py", "print('x')", 0),
        (prints, "train/a.py", "print('x')", 0),
        (environment, "train/a.py", "import os\nos.environ['A'] = 'b'", 1),
        (environment, "cli.py", "from os import getenv", 1),
        (environment, "speech/a.py", "import os\nos.path.join('a', 'environ')", 0),
    ],
)
def test_other_rules_are_seen(tmp_path, check, where, text, count):
    assert len(list(check(fake(tmp_path, where, text), tmp_path))) == count
