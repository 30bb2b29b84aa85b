"""The shell as a whole: help, version, unknown words, exit codes, and how quickly it starts."""

import subprocess
import sys

import pytest

import workbench as wb
from tests.paths import ROOT
from workbench.cli import main, options_of, quality
from workbench.cli.common import run_options


def test_no_verb_prints_help(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "speak" in out and "bench" in out and "--install-completion" in out


def test_bench_alone_prints_help(capsys):
    assert main(["bench"]) == 0
    out = capsys.readouterr().out
    assert "speed" in out and "deviation" in out


def test_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"workbench {wb.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["speek"], "Did you mean 'speak'"),
        (["speak", "Hello.", "--devise", "cpu"], "--device"),
        (["bench", "sped"], "Did you mean 'speed'"),
        (["speak"], "text"),
        (["speak", "Hello.", "--seed", "x"], "--seed"),
        (["compare", "a.trace"], "candidate"),
    ],
)
def test_a_usage_error_is_one_line_with_a_hint(capsys, typed, expected):
    assert main(typed) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and expected in said


def test_an_interrupt_ends_in_one_line(capsys, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.trace.trace.Trace.load", interrupted)
    assert main(["glitches", "a.trace"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_values_of_options_are_json_or_text():
    found = options_of(["n_timesteps=3", "solver=heun", "noise_seed=null", "mask_stop_ids=true"])
    assert found == {"n_timesteps": 3, "solver": "heun", "noise_seed": None, "mask_stop_ids": True}


def test_every_verb_has_help_and_an_example(capsys):
    assert quality.app.registered_commands
    for verb in (
        *("speak", "compare", "report", "diagnose", "suspects", "glitches", "precision", "inspect"),
        "quantise",
        *(
            "export-onnx",
            "notebook",
            "bench speed",
            "bench deviation",
            "bench trace",
            "bench glitches",
            "bench answers",
        ),
    ):
        assert main([*verb.split(), "--help"]) == 0
        assert f"Example: workbench {verb}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.process
def test_help_imports_nothing_slow():
    code = (
        "import sys; from workbench.cli import main; main(['speak', '--help']); "
        "print([n for n in ('torch', 'pandas', 'matplotlib') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.endswith("[]\n")


def test_a_preset_is_an_option_that_others_may_change():
    found = run_options(["top_k=7", "preset=trtllm-serve"])
    assert (found["top_k"], found["repetition_penalty"]) == (7, 1.1) and "preset" not in found
    with pytest.raises(wb.WorkbenchError, match="preset is 'none'"):
        run_options(["preset=none"])


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "none.trace", "none_either.trace"],
        ["compare", "none.wav", "none_either.wav"],
        ["bisect", "none.trace", "none_either.trace"],
        ["precision", "Hello.", "--voice", "none"],
        ["quantise", "Hello.", "--budget", "50%", "--voice", "none"],
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(words, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([*words, "-o", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.process
def test_speak_imports_neither_a_compiler_nor_signal_processing_that_it_does_not_use(tmp_path):
    code = (
        "import sys; from workbench.cli import main; main(sys.argv[1:]); "
        "print([name for name in ('numba', 'librosa', 'scipy.signal', 'matplotlib') if name in sys.modules])"
    )
    verb = ["speak", "One.", "--option", "n_timesteps=1", "--option", "max_tokens=4", "-o", str(tmp_path)]
    found = subprocess.run(
        [sys.executable, "-c", code, *verb], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "[]"


LOSES_CTRL_C = """
import os, signal, sys, time
import workbench.cli
module = sys.modules["workbench.cli.main"]

class Ignoring:
    def __del__(self):  # Python ignores what is raised here
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

def main():
    try:
        Ignoring()
        time.sleep(20)
    except KeyboardInterrupt:
        return module.INTERRUPTED
    return 0

module.main = main
sys.exit(module.shell())
"""


@pytest.mark.slow
@pytest.mark.process
def test_ctrl_c_is_not_lost_where_python_ignores_what_is_raised():
    run = subprocess.run([sys.executable, "-c", LOSES_CTRL_C], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (130, "")
