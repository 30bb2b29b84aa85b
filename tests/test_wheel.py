"""The wheel, built and installed outside the checkout: what is in it, and that its commands work from anywhere."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import workbench
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.process]

MAX_BYTES = 60_000_000
LOG = "".join(f"[PY ODE] step {k}: x max={k}.5, dt=0.{k}\n" for k in (1, 2, 4))
QUICK = ["--option", "max_tokens=12", "--option", "n_timesteps=2"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a source distribution as an index would receive it."""
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT], cwd=out)
    [wheel] = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def names(wheel):
    """The names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function that runs a program of a virtual environment with the wheel, in a folder outside the checkout.

    The environment reads the other packages of the test environment through a .pth file. Python does not
    follow the .pth files in a folder that is listed in one, so that the editable install is not found.
    """
    home = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], cwd=home)
    programs = home / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel],
        cwd=home,
    )
    [packages] = (home / "venv").glob("[Ll]ib/**/site-packages")
    packages.joinpath("tested.pth").write_text("\n".join(dict.fromkeys(test_packages())) + "\n")
    away = home / "away"
    away.mkdir()
    # Templates of nbconvert lie beside the packages, where another environment's Python does not look.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["JUPYTER_PATH"] = str(Path(sys.prefix) / "share" / "jupyter")

    def call(program, *args, code=0):
        return run([programs / program, *args], cwd=away, env=environment, code=code)

    call.away = away  # where it runs
    return call


def test_packages():
    """Return the folders in which the tests find their packages."""
    return [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]


test_packages.__test__ = False


def run(command, cwd, env=None, code=0):
    """Run a command, check its exit code and return what it printed."""
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_is_small(wheel):
    assert 10_000_000 < wheel.stat().st_size < MAX_BYTES


def test_the_wheel_holds_the_package_and_its_data(names):
    for name in (
        "py.typed",
        "show/player/web/player.js",
        "show/player/web/player.css",
        "show/player/web/player.html",
        "trace/importers/logs/logs.toml",
        "data/voices/tiny/llm.safetensors",
        "data/prompts/kumo_0.flac",
        "data/foreign/upstream.toml",
        "data/case/claims.csv",
        "notebooks/00-start-here.ipynb",
    ):
        assert f"workbench/{name}" in names


def test_the_wheel_holds_neither_training_nor_tests(names):
    assert not [name for name in names if "/train/" in name or "tests/" in name or "__pycache__" in name]
    assert {name.split("/")[0] for name in names} == {
        "workbench",
        f"cosyvoice_workbench-{workbench.__version__}.dist-info",
    }


def test_no_file_is_in_the_wheel_twice(wheel, names):
    assert len(names) == len(set(names))
    with zipfile.ZipFile(wheel) as archive:
        contents = [(info.CRC, info.file_size) for info in archive.infolist() if info.file_size > 1000]
    assert len(contents) == len(set(contents))


def test_the_installed_package_is_imported(installed):
    out = installed("python", "-c", "import workbench as wb; print(wb.__file__, wb.data_path('voices/tiny'))")
    package, voice = map(Path, out.split())
    assert not package.is_relative_to(ROOT) and package.parent.parent.name == "site-packages"
    assert voice == package.parent / "data" / "voices" / "tiny"


def test_the_version_is_printed(installed):
    assert workbench.__version__ in installed("workbench", "--version")
    metadata = "from importlib.metadata import version; print(version('cosyvoice-workbench'))"
    assert installed("python", "-c", metadata).strip() == workbench.__version__


def test_the_voice_speaks_and_traces_are_compared(installed):
    for name, more in (("a", []), ("b", ["--option", "cfg_rate=0.5"])):
        installed("workbench", "speak", "Hello.", "--name", name, "--trace", "everything", *QUICK, *more)
    a, b = (installed.away / "output" / f"{name}_0_0.trace" for name in "ab")
    assert a.with_suffix(".wav").stat().st_size > 1000
    assert installed("workbench", "compare", a, a) == "MATCH\n"
    assert "DIVERGED" in installed("workbench", "compare", a, b, code=1)


def test_a_log_is_read_and_compared(installed):
    log = installed.away / "run.log"
    log.write_text(LOG)
    read = "import workbench as wb; print(len(wb.read_log('run.log').runs))"
    assert installed("python", "-c", read) == "1\n"
    assert "DIVERGED" not in installed("workbench", "compare", log, log)


def test_a_notebook_of_the_wheel_runs(installed):
    installed("workbench", "notebook", "start-here", "--parameter", "text=Hello.", "--out", "page.html")
    page = (installed.away / "page.html").read_text(encoding="utf-8")
    assert "Hello." in page and "data:audio/flac" in page and "image/png" in page
