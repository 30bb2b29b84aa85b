"""`find_suspects` accuses no right run, however it was stored, and names no fault that is not there."""

import pytest
import torch

import workbench as wb
from workbench.diagnose.suspects.benchmark import (
    RECOMMENDED,
    RIGHT_VIEWS,
    VIEWS,
    kept,
    mel_and_waveform,
    printed,
    statistics_only,
    with_16_bit_waveform,
    without_lm_inputs,
)
from workbench.diagnose.suspects.catalogue.faults import CATALOGUE, inject
from workbench.diagnose.suspects.catalogue.kinds import KINDS, faults_of_kinds
from workbench.diagnose.suspects.other_kernels import FOREIGN_SUMS
from workbench.diagnose.suspects.simulate import FaultSimulator
from workbench.diagnose.suspects.suspects import find_suspects

pytestmark = pytest.mark.slow
NAMED = {fault.name: fault for fault in CATALOGUE}


@pytest.fixture(scope="module")
def simulator(pipe):
    utt = pipe.prepare("The boat came back.", "data/prompts/alpha_0.flac")
    options = pipe.checkpoint.options.but(n_timesteps=2, max_tokens=12, seed=5)
    return FaultSimulator(pipe.synthesise(utt, options=options, save=wb.EVERYTHING), pipe)


def ask(simulator, candidate, **kwargs):
    return find_suspects(simulator.reference, candidate, simulator.pipe, simulator=simulator, **kwargs)


def member(pipe, name):
    return next(fault for fault in faults_of_kinds(pipe) if fault.name == name)


@pytest.mark.parametrize("view", RIGHT_VIEWS)
def test_a_right_run_is_not_accused_in_any_form(simulator, view):
    found = ask(simulator, RIGHT_VIEWS[view](simulator.reference))
    assert found.healthy and found.explained_by == () and found.checked, found.line


def test_a_run_without_the_lms_inputs_is_right_without_a_reference_too(simulator):
    found = find_suspects(None, without_lm_inputs(simulator.reference), simulator.pipe)
    assert found.healthy and any(place.startswith("lm") for place in found.unchecked)


@pytest.mark.parametrize("name", ["cfg-off", "grid-linear", "adaln-order"])
def test_the_recommended_recording_shows_faults_of_the_ode(simulator, name):
    candidate = kept(inject(simulator.pipe, simulator.reference, (NAMED[name],)), *RECOMMENDED)
    found = ask(simulator, candidate)
    assert found.explained_by == (name,) and not found.healthy
    line = wb.compare(simulator.reference, candidate, simulator.pipe).line
    assert "could not be checked" in line and "no result of the candidate is wrong" not in line


@pytest.mark.parametrize(
    "name",
    [
        "padded-without-mask(64)",
        "bias-missing(decoder.estimator.transformer_blocks.2.attn.to_v.bias)",
        "bias-missing(llm.model.model.layers.0.self_attn.q_proj.bias)",
        "quantised(flow.decoder int8:channel)",
        "voiced-threshold(200)",
        "stft-shifted(1)",
        "cond-scaled(0.5)",
        "solver-other(midpoint)",
    ],
)
@pytest.mark.parametrize("view", ["whole trace", "mel and waveform"])
def test_a_fault_that_is_not_listed_is_none_of_these(simulator, name, view):
    fault = member(simulator.pipe, name)
    candidate = RIGHT_VIEWS[view](inject(simulator.pipe, simulator.reference, (fault,)))
    found = ask(simulator, candidate, kinds=())
    assert found.explained_by == (), found.line
    assert found.healthy or (found.line.startswith("none of these") and found.next_experiment)


def test_a_known_fault_is_named_beside_an_unknown_one(simulator):
    unknown = member(simulator.pipe, "block-left-out(flow 1)")
    candidate = inject(simulator.pipe, simulator.reference, (NAMED["grid-linear"], unknown))
    found = ask(simulator, candidate, kinds=())
    assert found.explained_by == ("grid-linear",) and "none of these beside it" in found.line


# Some kinds alone: `workbench suspects --self-test` asks about all of them.
@pytest.mark.parametrize("kind", ["block-left-out", "rope-base", "prompt-tokens-late", "bias-missing"])
def test_the_parameter_of_a_kind_is_told(simulator, kind):
    faults = list(next(one for one in KINDS if one.name == kind).faults(simulator.pipe))
    fault = faults[len(faults) // 2]
    found = ask(simulator, inject(simulator.pipe, simulator.reference, (fault,)))
    ties = {tie.name for verdict in found.verdicts for tie in verdict.ties}
    assert fault.name in {*found.explained_by, *ties}


def test_another_draw_of_the_excitation_noise_is_named_for_what_it_is(simulator):
    candidate = inject(simulator.pipe, simulator.reference, (NAMED["source-noise-other"].redraws[2],))
    assert ask(simulator, candidate).explained_by == ("source-noise-other",)


def test_tokens_that_our_lm_would_not_say_are_wrong_where_no_probabilities_were_recorded(simulator):
    fields = ("in/text_token", "in/prompt_text_token", "in/lm_prompt_token", "lm/speech_token")
    right = wb.Trace(kept(simulator.reference, *fields).data, {})
    assert ask(simulator, right).healthy
    drawn_at_random = torch.randint(0, 200, (24,), generator=torch.Generator().manual_seed(0))
    found = ask(simulator, wb.Trace(dict(right) | {"lm/speech_token": drawn_at_random}, {}), kinds=())
    assert not found.healthy and found.verdicts[0].places == ("lm/speech_token",)


def test_a_reference_of_other_weights_stops_the_diagnosis(simulator):
    reference = wb.Trace(
        dict(simulator.reference) | {"flow/mu": simulator.reference["flow/mu"].roll(3, 0)}, {}
    )
    found = find_suspects(reference, reference, simulator.pipe)
    assert found.objection and not found.healthy and found.explained_by == ()
    assert "not what this checkpoint gives" in found.line


def test_a_precision_fault_shows_also_through_a_16_bit_waveform(simulator):
    candidate = inject(simulator.pipe, simulator.reference, (NAMED["window-sum-left-out"],))
    assert ask(simulator, with_16_bit_waveform(mel_and_waveform(candidate))).explained_by == (
        "window-sum-left-out",
    )


def test_noise_of_another_size_is_no_other_draw(simulator):
    data = dict(simulator.reference)
    data["flow/noise"] = 1.5 * torch.randn(
        data["flow/noise"].shape, generator=torch.Generator().manual_seed(3)
    )
    found = ask(simulator, wb.Trace(data, simulator.reference.attrs), kinds=())
    assert "noise-other" not in found.explained_by


@pytest.mark.parametrize(
    ("kind", "value"),
    [("guidance-rate", 0.437), ("mu-scaled", 0.83), ("temperature", 0.6123), ("grid-sway", -0.37)],
)
def test_a_parameter_that_is_not_listed_is_fitted(simulator, kind, value):
    fault = next(one for one in KINDS if one.name == kind).linear.with_value(value)
    found = ask(simulator, inject(simulator.pipe, simulator.reference, (fault,)))
    assert found.explained_by == (fault.name,), found.line


def test_compare_allows_the_digits_that_statistics_were_printed_with(simulator):
    candidate = printed(statistics_only(simulator.reference), 3)
    assert set(wb.compare(simulator.reference, candidate).rows["verdict"]) <= {"ALIKE", "MISSING"}
    assert ask(simulator, candidate).healthy


def test_a_fault_of_all_steps_is_named_beside_one_of_later_steps(simulator):
    unknown = member(simulator.pipe, "time-wrong(0)")  # the first step has the time 0 anyway
    candidate = inject(simulator.pipe, simulator.reference, (NAMED["input-order"], unknown))
    found = ask(simulator, candidate, kinds=())
    assert found.explained_by == ("input-order",) and "none of these beside it" in found.line


def test_statistics_that_equal_the_healthy_models_show_that_nothing_else_was_drawn(simulator):
    late = member(simulator.pipe, "stft-shifted(-1)")
    candidate = statistics_only(inject(simulator.pipe, simulator.reference, (late,)))
    assert "source-noise-other" not in ask(simulator, candidate, kinds=()).explained_by


@pytest.mark.parametrize("view", ["whole trace", "statistics", "mel and waveform"])
@pytest.mark.parametrize("name", ["vocoder-float16", "vocoder-bfloat16"])
def test_half_precision_of_a_program_that_adds_in_another_order_accuses_no_other_fault(simulator, name, view):
    made = inject(simulator.pipe, simulator.reference, (NAMED[name], FOREIGN_SUMS))
    found = ask(simulator, VIEWS[view](made), kinds=())
    assert not found.healthy and set(found.explained_by) <= {name}, found.line
    if view != "statistics":  # a few numbers need not tell it
        assert found.explained_by == (name,), found.line


def test_a_right_run_that_adds_in_another_order_is_not_accused(simulator):
    candidate = inject(simulator.pipe, simulator.reference, (FOREIGN_SUMS,))
    assert not torch.equal(candidate["flow/mel"], simulator.reference["flow/mel"])
    assert ask(simulator, candidate).healthy


def test_statistics_as_far_off_as_half_precision_makes_them_say_so_without_accusing(simulator):
    fault = NAMED["vocoder-bfloat16"]
    made = inject(simulator.pipe, simulator.reference, (fault, FOREIGN_SUMS))
    found = ask(simulator, statistics_only(made), catalogue=[fault], kinds=())
    assert found.explained_by == ()
    assert "as large as if the vocoder runs in bfloat16" in found.verdicts[0].reason
