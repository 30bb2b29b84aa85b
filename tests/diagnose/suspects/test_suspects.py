"""`find_suspects` names injected faults, from whole traces, from a mel and a waveform, and from statistics."""

from dataclasses import replace

import pytest
import torch

import workbench as wb
from workbench.cli import main
from workbench.diagnose.suspects.benchmark import (
    Row,
    confusions,
    mel_and_waveform,
    self_test,
    statistics_only,
    table,
)
from workbench.diagnose.suspects.catalogue.faults import CATALOGUE, inject
from workbench.diagnose.suspects.simulate import FaultSimulator
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
def simulator(pipe):
    utt = pipe.prepare("Eight months to Mars.", "data/prompts/nezumi_1.flac")
    options = pipe.checkpoint.options.but(n_timesteps=3, max_tokens=12, seed=7)
    return FaultSimulator(pipe.synthesise(utt, options=options, save=wb.EVERYTHING), pipe)


def suspects_of(simulator, candidate, catalogue=CATALOGUE):
    return find_suspects(simulator.reference, candidate, simulator.pipe, catalogue, simulator)


@pytest.mark.parametrize("name", TEN)
def test_a_fault_in_a_whole_trace_is_named(simulator, name):
    candidate = inject(simulator.pipe, simulator.reference, (NAMED[name],))
    found = suspects_of(simulator, candidate)
    assert found.explained_by == (name,) and found.suspects[0].fault.name == name
    assert found.explained > 0.9 and name in found.line and not found.healthy
    evidence = found.suspects[0].evidence
    assert len(evidence) and evidence["fits"].all() and (evidence["healthy"] > evidence["allowed"]).any()
    assert "candidate" not in found._repr_html_() and name in found._repr_html_()


def test_injected_faults_leave_no_sign_in_the_attributes(simulator):
    candidate = inject(simulator.pipe, simulator.reference, (NAMED["cfg-off"],))
    assert set(candidate.attrs["options"]) == {"seed"} and candidate.attrs.get("checkpoint") is None


@pytest.mark.parametrize("name", ["cfg-off", "source-noise-none"])
def test_a_fault_is_named_from_statistics_alone(simulator, name):
    candidate = statistics_only(inject(simulator.pipe, simulator.reference, (NAMED[name],)))
    assert all(field.endswith(".stats") for field in candidate)
    few = [NAMED[other] for other in (*TEN[2:], "cfg-off", "source-noise-none", "source-loud")]
    assert suspects_of(simulator, candidate, few).explained_by == (name,)


def test_a_state_that_no_log_printed_is_no_error(simulator):
    candidate = statistics_only(inject(simulator.pipe, simulator.reference, (NAMED["cfg-off"],)))
    x = candidate["flow/x.stats"].clone()
    x[0] = float("nan")
    found = suspects_of(simulator, wb.Trace({"flow/x.stats": x}, {}), [NAMED["cfg-off"], NAMED["cfg-sign"]])
    assert found.explained_by == ("cfg-off",) and found.explained > 0.99


def test_a_fault_is_named_from_a_mel_and_a_waveform(simulator):
    candidate = mel_and_waveform(inject(simulator.pipe, simulator.reference, (NAMED["window-sum-left-out"],)))
    assert set(candidate) == {"flow/mel", "hift/wav"}
    assert suspects_of(simulator, candidate).explained_by == ("window-sum-left-out",)


def test_two_faults_at_once_are_both_named(simulator):
    two = NAMED["speaker-not-normalised"], NAMED["trunk-slope"]
    found = suspects_of(simulator, inject(simulator.pipe, simulator.reference, two))
    assert set(found.explained_by) == {fault.name for fault in two} and found.explained > 0.95


def test_a_healthy_run_has_no_suspects(pipe, simulator):
    utt = pipe.prepare("The letter came too late.", "data/prompts/kumo_1.flac")
    options = pipe.checkpoint.options.but(n_timesteps=2, max_tokens=10, seed=3)
    found = find_suspects(None, pipe.synthesise(utt, options=options, save=wb.EVERYTHING), pipe)
    assert (
        found.healthy and not found.explained_by
    )  # a run that recorded its inputs is simulated with its own options
    same = suspects_of(simulator, simulator.reference)
    assert same.healthy and not same.suspects and "nothing to explain" in same.line


def test_an_unknown_fault_is_none_of_the_catalogue(simulator):
    data = dict(simulator.reference)
    torch.manual_seed(0)
    data["hift/source"] = data["hift/source"].flip(0)
    found = suspects_of(simulator, wb.Trace(data, simulator.reference.attrs))
    assert not found.explained_by and found.line.startswith("none of these")


def test_the_next_experiment_names_a_field_to_record(simulator):
    fault = NAMED["uncond-keeps-spks"]
    whole = inject(simulator.pipe, simulator.reference, (fault,))
    only = wb.Trace({"flow/mel": whole["flow/mel"]}, whole.attrs)
    twins = [fault, NAMED["uncond-keeps-all"], NAMED["cfg-off"], NAMED["gelu-exact"]]
    found = find_suspects(simulator.reference, only, simulator.pipe, twins, simulator)
    assert found.suspects[0].fault is fault
    assert found.next_experiment == "" or "record" in found.next_experiment


def test_a_candidate_without_predictable_fields_is_refused(simulator):
    with pytest.raises(WorkbenchError, match="record a mel"):
        find_suspects(None, wb.Trace({"flow/mu": torch.zeros(80, 4)}, {"sample_rate": 24000}), simulator.pipe)


def test_the_self_test_counts_right_and_wrong_answers(pipe):
    utt = pipe.prepare("Eight months to Mars.", "data/prompts/kumo_1.flac")
    short = replace(pipe.checkpoint, options=pipe.checkpoint.options.but(n_timesteps=2, max_tokens=8))
    rows = list(
        self_test(
            wb.Pipeline(short, progress=False), [(utt, 5)], [NAMED["cfg-sign"]], ["whole trace"], healthy=1
        )
    )
    assert [row.outcome for row in rows] == ["right", "right"] and rows[0].named == "cfg-sign"
    more = [
        *rows,
        Row("catalogue", "whole trace", "a", "b", "wrong"),
        Row("catalogue", "whole trace", "c", "", "no effect"),
    ]
    first = table(more).iloc[0]
    assert (first["case"], first["runs"], first["right"], first["wrong"], first["no_effect"]) == (
        *("catalogue", 2, 0.5, 0.5, 1),
    )
    assert confusions(more)[["made", "named"]].to_dict("records") == [{"made": "a", "named": "b"}]


def test_diagnose_and_suspects_in_a_shell(tmp_path, simulator, capsys):
    candidate = inject(simulator.pipe, simulator.reference, (NAMED["cfg-off"],))
    paths = [
        str(trace.save(tmp_path / name)) for trace, name in ((simulator.reference, "a"), (candidate, "b"))
    ]
    assert main(["diagnose", paths[1], "--reference", paths[0]]) == 0
    out = capsys.readouterr().out
    assert out.startswith("cfg-off: no guidance") and "flow/velocity[0]" in out
    assert main(["suspects", "--name", "cfg-off"]) == 0
    assert "cfg-off [flow] no guidance" in capsys.readouterr().out
    assert main(["suspects", "--name", "nothing"]) == 2
