"""Mistakes made on purpose are named, from whole traces, from a mel and a waveform, and from statistics."""

from dataclasses import replace

import pytest
import torch

import workbench as wb
from workbench.cli import main
from workbench.diagnose.suspects.benchmark import Row, confusions, heard, inject, self_test, summed_up, table
from workbench.diagnose.suspects.faults import CATALOGUE
from workbench.diagnose.suspects.simulate import Rehearsals
from workbench.diagnose.suspects.suspects import find_suspects
from workbench.errors import WorkbenchError

pytestmark = pytest.mark.slow

NAMED = {fault.name: fault for fault in CATALOGUE}
TEN = (
    "mel-log10",
    "lm-rope-theta",
    "mu-interpolated",
    "noise-transposed",
    "grid-linear",
    "uncond-keeps-mu",
    "rotary-every-head",
    "cfg-sign",
    "last-slope",
    "f0-float16",
)


@pytest.fixture(scope="module")
def rehearsals(pipe):
    utt = pipe.prepare("Eight months to Mars.", "data/prompts/nezumi_1.flac")
    options = pipe.checkpoint.options.but(n_timesteps=3, max_tokens=12, seed=7)
    return Rehearsals(pipe.synthesise(utt, options=options, save=wb.EVERYTHING), pipe)


def ask(rehearsals, candidate, catalogue=CATALOGUE):
    return find_suspects(rehearsals.reference, candidate, rehearsals.pipe, catalogue, rehearsals)


@pytest.mark.parametrize("name", TEN)
def test_a_mistake_in_a_whole_trace_is_named(rehearsals, name):
    candidate = inject(rehearsals.pipe, rehearsals.reference, (NAMED[name],))
    found = ask(rehearsals, candidate)
    assert found.together == (name,) and found.suspects[0].fault.name == name
    assert found.explained > 0.9 and name in found.line and not found.clean
    evidence = found.suspects[0].evidence
    assert len(evidence) and evidence["fits"].all() and (evidence["right"] > evidence["allowed"]).any()
    assert "candidate" not in found._repr_html_() and name in found._repr_html_()


def test_what_the_candidate_says_of_itself_is_not_asked(rehearsals):
    candidate = inject(rehearsals.pipe, rehearsals.reference, (NAMED["cfg-off"],))
    assert set(candidate.attrs["options"]) == {"seed"} and candidate.attrs.get("checkpoint") is None


@pytest.mark.parametrize("name", ["cfg-off", "source-noise-none"])
def test_statistics_will_do(rehearsals, name):
    candidate = summed_up(inject(rehearsals.pipe, rehearsals.reference, (NAMED[name],)))
    assert all(field.endswith(".stats") for field in candidate)
    few = [NAMED[other] for other in (*TEN[2:], "cfg-off", "source-noise-none", "source-loud")]
    assert ask(rehearsals, candidate, few).together == (name,)


def test_a_state_that_no_log_prints_is_no_error(rehearsals):
    candidate = summed_up(inject(rehearsals.pipe, rehearsals.reference, (NAMED["cfg-off"],)))
    x = candidate["flow/x.stats"].clone()
    x[0] = float("nan")
    found = ask(rehearsals, wb.Trace({"flow/x.stats": x}, {}), [NAMED["cfg-off"], NAMED["cfg-sign"]])
    assert found.together == ("cfg-off",) and found.explained > 0.99


def test_a_mel_and_a_waveform_will_do(rehearsals):
    candidate = heard(inject(rehearsals.pipe, rehearsals.reference, (NAMED["window-sum-left-out"],)))
    assert set(candidate) == {"flow/mel", "hift/wav"}
    assert ask(rehearsals, candidate).together == ("window-sum-left-out",)


def test_two_at_once(rehearsals):
    two = NAMED["speaker-not-normalised"], NAMED["trunk-slope"]
    found = ask(rehearsals, inject(rehearsals.pipe, rehearsals.reference, two))
    assert set(found.together) == {fault.name for fault in two} and found.explained > 0.95


def test_a_right_run_has_no_suspects(pipe, rehearsals):
    utt = pipe.prepare("The letter came too late.", "data/prompts/kumo_1.flac")
    options = pipe.checkpoint.options.but(n_timesteps=2, max_tokens=10, seed=3)
    found = find_suspects(None, pipe.synthesise(utt, options=options, save=wb.EVERYTHING), pipe)
    assert (
        found.clean and not found.together
    )  # a run that brings its inputs is asked for with its own options
    same = ask(rehearsals, rehearsals.reference)
    assert same.clean and not same.suspects and "nothing to explain" in same.line


def test_what_nobody_made_before_is_none_of_these(rehearsals):
    data = dict(rehearsals.reference)
    torch.manual_seed(0)
    data["hift/source"] = data["hift/source"].flip(0)
    found = ask(rehearsals, wb.Trace(data, rehearsals.reference.attrs))
    assert not found.together and found.line.startswith("none of these")


def test_what_would_tell_two_apart(rehearsals):
    fault = NAMED["uncond-keeps-spks"]
    whole = inject(rehearsals.pipe, rehearsals.reference, (fault,))
    only = wb.Trace({"flow/mel": whole["flow/mel"]}, whole.attrs)
    twins = [fault, NAMED["uncond-keeps-all"], NAMED["cfg-off"], NAMED["gelu-exact"]]
    found = find_suspects(rehearsals.reference, only, rehearsals.pipe, twins, rehearsals)
    assert found.suspects[0].fault is fault
    assert found.next_experiment == "" or "record" in found.next_experiment


def test_a_candidate_without_anything_to_follow(rehearsals):
    with pytest.raises(WorkbenchError, match="record a mel"):
        find_suspects(
            None, wb.Trace({"flow/mu": torch.zeros(80, 4)}, {"sample_rate": 24000}), rehearsals.pipe
        )


def test_the_self_test_counts(pipe):
    utt = pipe.prepare("Eight months to Mars.", "data/prompts/kumo_1.flac")
    short = replace(pipe.checkpoint, options=pipe.checkpoint.options.but(n_timesteps=2, max_tokens=8))
    rows = list(
        self_test(
            wb.Pipeline(short, progress=False), [(utt, 5)], [NAMED["cfg-sign"]], ["whole trace"], clean=1
        )
    )
    assert [row.outcome for row in rows] == ["right", "right"] and rows[0].named == "cfg-sign"
    more = [
        *rows,
        Row("whole trace", "a", "b", False, True, "wrong"),
        Row("whole trace", "c", "", False, False, "no effect"),
    ]
    summary = table(more)
    assert summary.loc["whole trace", "top_1"] == 0.5 and summary.loc["whole trace", "top_3"] == 1.0
    assert summary.loc["whole trace", "no_effect"] == 1
    assert confusions(more).to_dict("records") == [{"view": "whole trace", "made": "a", "named": "b"}]


def test_in_a_shell(tmp_path, rehearsals, capsys):
    candidate = inject(rehearsals.pipe, rehearsals.reference, (NAMED["cfg-off"],))
    paths = [
        str(trace.save(tmp_path / name)) for trace, name in ((rehearsals.reference, "a"), (candidate, "b"))
    ]
    assert main(["diagnose", paths[1], "--reference", paths[0]]) == 0
    out = capsys.readouterr().out
    assert out.startswith("cfg-off (100 %)") and "flow/velocity[0]" in out
    assert main(["suspects", "--name", "cfg-off"]) == 0
    assert "cfg-off [flow] no guidance" in capsys.readouterr().out
    assert main(["suspects", "--name", "nothing"]) == 2
