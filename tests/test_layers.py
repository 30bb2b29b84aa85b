"""What the whole package keeps to: imports run downwards, no circles, sound libraries in one file, no prints."""

import ast

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "workbench"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground floor up. A module belongs to the longest entry that its name begins with; it may import
# what belongs to the same entry or to one above it in this list, which lies further down in the house.
ORDER = (
    "errors",
    "files",
    "progress",
    "tables",
    "trace",
    "trace.importers",
    "speech.config",
    "speech.models",
    "speech.frontend",
    "speech.checkpoint",
    "speech.onnx",
    "speech.fast.fuse",
    "speech.fast.tf32x3",
    "speech.fast.capability",
    "speech.fast.cuda_graphs",
    "speech.fast.sampling",
    "speech.fast.decode_state",
    "speech.fast.lm_torch",
    "speech.fast.kernels",
    "speech.fast",
    "speech.model_cache",
    "speech.stage_runner",
    "speech.recording",
    "speech.run",
    "speech.batch",
    "speech.pipeline",
    "speech.streaming",
    "diagnose.layerwise",
    "diagnose.open",
    "diagnose.compare",
    "diagnose.bisect",
    "diagnose.glitches",
    "diagnose.sounds",
    "diagnose.experiments",
    "diagnose.quantisation",
    "diagnose.headroom",
    "diagnose.precision",
    "diagnose.suspects",
    "diagnose.benchmarks",
    "show.plots",
    "show.player",
    "show.report",
    "show.widgets",
    "show.dashboard",
    "cli",
    "__main__",
)
FRONT = ("workbench", "workbench.__main__")  # the public names, and `python -m workbench`
ROOMS = ("trace", "speech", "diagnose", "show", "cli", "train")
AUDIO = {"torchaudio", "librosa", "soundfile", "av", "torchcodec"}
AUDIO_FILES = ("workbench.speech.frontend.audio", "workbench.speech.frontend.audio_files")
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def dotted(path, package=PACKAGE):
    """workbench/trace/schema.py -> workbench.trace.schema."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def place(name):
    """The position in ORDER of the longest entry that a module's name begins with; None for no entry."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        entry = ".".join(parts[:length])
        if entry in ORDER:
            return ORDER.index(entry)
    return None


def imported(path, names, package=PACKAGE):
    """(module, line, whether at the top level) of each import of a module of `names` or from outside."""
    tree = ast.parse(path.read_text())
    here = dotted(path, package).split(".")
    parents = here if path.name == "__init__.py" else here[:-1]
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            found = [name if name in names else base for name in inner]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found = [str(node.args[0].value)] if called in {"import_module", "__import__"} else []
        for name in found:
            yield name, node.lineno, id(node) in top


def upward_imports(files, package=PACKAGE):
    """Imports that do not run downwards, of train, or of a module that has no place in ORDER."""
    names = {dotted(path, package) for path in files}
    for path in files:
        name = dotted(path, package)
        trains = name.startswith("workbench.train")
        for other, line, _ in imported(path, names, package):
            if other.split(".")[0] != "workbench":
                continue
            if other.startswith("workbench.train") and not trains:
                yield f"{name}:{line} imports {other}, which nothing may"
            elif name in FRONT or other.startswith("workbench.train"):
                continue
            elif other == "workbench" and name.startswith("workbench.cli"):
                continue  # the version; the public names import nothing until they are used
            elif trains:
                if not other.startswith(("workbench.speech", "workbench.errors", "workbench.files")):
                    yield f"{name}:{line} imports {other}; training stands on speech alone"
            elif place(name) is None or place(other) is None or place(other) > place(name):
                yield f"{name}:{line} imports {other}, which lies above it or has no place in ORDER"
            elif "fast.kernels" in other and "fast" not in name:
                yield f"{name}:{line} imports {other}; kernels are imported from speech/fast alone"


def circles(files, package=PACKAGE):
    """Chains of modules that import each other, counting imports anywhere in a file."""
    names = {dotted(path, package): path for path in files}
    graph = {}
    for name, path in names.items():
        found = {other for other, _, _ in imported(path, names, package) if other in names}
        graph[name] = sorted(found - {name})
    done, chain = set(), []

    def visit(name):
        if name in chain:
            yield " -> ".join([*chain[chain.index(name) :], name])
        elif name not in done:
            chain.append(name)
            for other in graph[name]:
                yield from visit(other)
            chain.pop()
            done.add(name)

    for name in graph:
        if name != "workbench":  # the public names may be imported by nobody inside, and import everything
            yield from visit(name)


def misplaced_libraries(files, package=PACKAGE):
    """Sound libraries outside two files of frontend/, and Triton imported where no kernel is."""
    for path in files:
        name = dotted(path, package)
        for other, line, top in imported(path, set(), package):
            root = other.split(".")[0]
            if root in AUDIO and name not in AUDIO_FILES and ".train" not in name:
                yield f"{name}:{line} imports {root}; sound is read and written in speech/frontend/audio*.py"
            if root == "triton" and top and "fast.kernels" not in name:
                yield f"{name}:{line} imports triton at the top; only kernels do"


def prints_and_environment(files, package=PACKAGE):
    """Calls of print outside the shell and training, and uses of environment variables anywhere."""
    for path in files:
        name = dotted(path, package)
        may_print = name.startswith(("workbench.cli", "workbench.train"))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print" and not may_print:
                yield f"{name}:{node.lineno} prints"
            used = set()
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "os":
                used = {node.attr}
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                used = {alias.name for alias in node.names}
            if used & ENVIRONMENT:
                yield f"{name}:{node.lineno} reads the environment"


RULES = (upward_imports, circles, misplaced_libraries, prints_and_environment)


def test_the_package_keeps_to_its_rules():
    assert [said for rule in RULES for said in rule(FILES)] == []


def test_folders_and_files_stay_small():
    folders = [
        path for path in (PACKAGE, *PACKAGE.rglob("*")) if path.is_dir() and path.name != "__pycache__"
    ]
    for folder in folders:
        entries = [path for path in folder.iterdir() if path.name != "__pycache__"]
        assert len(entries) <= 14, folder
    assert {folder.name for folder in folders if folder.parent == PACKAGE} <= set(ROOMS)
    for path in FILES:
        if path.name != "faults.py":  # the table of known faults
            assert len(path.read_text().splitlines()) <= 400, path


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        (upward_imports, {"trace/a.py": "import workbench.speech.config"}),
        (upward_imports, {"trace/a.py": "from workbench import show"}),
        (upward_imports, {"trace/a.py": "from ..speech import config"}),
        (upward_imports, {"trace/a.py": "import workbench"}),
        (upward_imports, {"trace/a.py": "from workbench.trace.importers import logs"}),
        (upward_imports, {"speech/models/a.py": "from workbench.speech.fast import lm"}),
        (upward_imports, {"speech/config/a.py": "def f():\n    from workbench.speech.models import lm"}),
        (upward_imports, {"speech/run.py": "from workbench.speech.pipeline import Pipeline"}),
        (upward_imports, {"speech/run.py": "from workbench import Trace"}),
        (
            upward_imports,
            {"speech/run.py": "import importlib\nimportlib.import_module('workbench.show.plots')"},
        ),
        (upward_imports, {"speech/run.py": "from workbench.speech.fast.kernels import lm"}),
        (
            upward_imports,
            {"diagnose/compare/a.py": "from workbench.diagnose.suspects.catalogue import faults"},
        ),
        (upward_imports, {"cli/a.py": "from workbench.train.models.lm import main"}),
        (upward_imports, {"train/a.py": "from workbench.diagnose.compare import compare"}),
        (upward_imports, {"novel/a.py": "from workbench.errors import WorkbenchError"}),
        (
            circles,
            {"trace/a.py": "from workbench.trace import b", "trace/b.py": "from workbench.trace import a"},
        ),
        (
            circles,
            {"trace/a.py": "def f():\n    from workbench.trace.b import g", "trace/b.py": "from .a import f"},
        ),
        (misplaced_libraries, {"show/a.py": "def f():\n    import soundfile"}),
        (misplaced_libraries, {"speech/frontend/frontend.py": "from torchaudio.functional import resample"}),
        (misplaced_libraries, {"speech/fast/lm.py": "import triton"}),
        (prints_and_environment, {"speech/a.py": "print('x')"}),
        (prints_and_environment, {"train/a.py": "import os\nos.environ['A'] = 'b'"}),
        (prints_and_environment, {"cli/a.py": "from os import getenv"}),
    ],
)
def test_a_broken_rule_is_seen(tmp_path, rule, files):
    assert list(rule(written(tmp_path, files), tmp_path / "workbench"))


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        (upward_imports, {"trace/importers/a.py": "from workbench.trace import schema\nfrom . import logs"}),
        (
            upward_imports,
            {"speech/fast/lm.py": "def f():\n    from workbench.speech.fast.kernels.lm import K"},
        ),
        (upward_imports, {"cli/a.py": "from workbench.show.report import report\nimport torch"}),
        (upward_imports, {"__init__.py": "from workbench.show import plots\nfrom .trace.trace import Trace"}),
        (upward_imports, {"train/a.py": "from workbench.speech.models.lm import LM\nfrom .b import c"}),
        (circles, {"trace/a.py": "from workbench.trace import b", "trace/b.py": "import torch"}),
        (
            misplaced_libraries,
            {"speech/frontend/audio.py": "import librosa", "train/a.py": "import torchaudio"},
        ),
        (misplaced_libraries, {"speech/fast/kernels/lm.py": "import triton"}),
        (prints_and_environment, {"cli/a.py": "print('x')", "speech/a.py": "plt.print('x')  # print('x')"}),
        (prints_and_environment, {"speech/a.py": "import os\nos.path.join('a', 'environ')"}),
    ],
)
def test_what_keeps_to_the_rules_passes(tmp_path, rule, files):
    assert list(rule(written(tmp_path, files), tmp_path / "workbench")) == []


def written(folder, files):
    """Write files below a made-up package and return their paths."""
    paths = []
    for name, text in files.items():
        path = folder / "workbench" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        paths.append(path)
    return paths
