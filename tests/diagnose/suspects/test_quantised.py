"""Quantised weights are named with their format and their layers, and never as a fault."""

import pytest

import workbench as wb
from workbench.diagnose.suspects.benchmark import full_trace, mel_and_waveform, quantised_run
from workbench.diagnose.suspects.catalogue.kinds import KINDS
from workbench.diagnose.suspects.other_kernels import FOREIGN_SUMS
from workbench.diagnose.suspects.quantised import MAX_GROUP, sort_of
from workbench.speech.config.formats import every_format, rules_of_stage, rules_text, with_inputs

BLOCKS = "flow.decoder.estimator.transformer_blocks."


@pytest.fixture(scope="module")
def recorded(pipe, utt):
    """A complete run with two steps of the ODE: each format needs one like it."""
    options = pipe.options(None).but(n_timesteps=2)
    return pipe.synthesise(utt, 7, options, wb.EVERYTHING)


@pytest.fixture(scope="module")
def simulator(pipe, recorded):
    return wb.FaultSimulator(recorded, pipe)


def run_with(pipe, recorded, weights, *faults):
    """A run of a program that has quantised weights, and does not say so."""
    weights = rules_text(weights)
    has_lm = rules_of_stage(weights, "lm") is not None
    return wb.faults.inject(pipe, recorded, [*faults, quantised_run(weights, has_lm), FOREIGN_SUMS])


@pytest.mark.slow
@pytest.mark.parametrize("text", ("q4_0", "int8:channel,full"))
def test_a_format_of_all_weights_is_named(pipe, recorded, simulator, text):
    found = wb.find_suspects(recorded, run_with(pipe, recorded, text), pipe, simulator=simulator)
    assert text in found.formats["lm"] and text in found.formats["flow.decoder"]
    assert len(found.formats) == len(found.explained_by)
    assert found.line.startswith("quantised weights, no fault: ")
    assert not any(verdict.reason for verdict in found.verdicts), found.line


@pytest.mark.slow
def test_layers_that_have_the_format_are_told(pipe, recorded, simulator):
    weights = {f"{BLOCKS}{k}.*": "int4:group=32" for k in (1, 2)}
    found = wb.find_suspects(recorded, run_with(pipe, recorded, weights), pipe, simulator=simulator)
    layers = wb.layers(pipe.checkpoint)["layer"]
    inside = layers[layers.str.startswith("flow.decoder.")]
    count = inside.str.startswith((f"{BLOCKS}1.", f"{BLOCKS}2.")).sum()
    assert found.formats == {f"{count} of {len(inside)} layers of flow.decoder": "int4:group=32"}


@pytest.mark.slow
def test_two_formats_are_told_apart_by_layer(pipe, recorded, simulator):
    weights = {f"{BLOCKS}*": "q4_0", f"{BLOCKS}*.to_v": "q8_0"}
    found = wb.find_suspects(recorded, run_with(pipe, recorded, weights), pipe, simulator=simulator)
    assert sorted(found.formats.values()) == ["q4_0", "q8_0"]


@pytest.mark.slow
def test_a_fault_beside_a_format_is_named_with_it(pipe, recorded, simulator):
    run = run_with(pipe, recorded, {"flow": "q8_0"}, wb.faults.named("time-unscaled"))
    found = wb.find_suspects(recorded, run, pipe, simulator=simulator)
    assert "time-unscaled" in found.explained_by
    assert "q8_0" in found.formats.values()


@pytest.mark.slow
def test_mel_and_waveform_alone_show_the_format_of_the_flow(pipe, recorded, simulator):
    run = mel_and_waveform(run_with(pipe, recorded, {"flow": "q4_0"}))
    found = wb.find_suspects(recorded, run, pipe, simulator=simulator)
    assert found.formats == {"flow": "q4_0"} and len(found.explained_by) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "keep", "formats"),
    [
        ("flow=q5_0", full_trace, {"flow.spk_embed": "q5_0"}),  # q4_k is the same in such a narrow layer
        ("flow=int4:group=32", mel_and_waveform, {}),  # q4_0 is near, and int4 is not tried
    ],
)
def test_a_format_that_is_merely_near_is_not_named(pipe, recorded, simulator, weights, keep, formats):
    run = keep(run_with(pipe, recorded, weights))
    only_formats = [kind for kind in KINDS if kind.name == "quantised"]
    found = wb.find_suspects(recorded, run, pipe, (), simulator, only_formats)
    assert not found.healthy
    assert formats.items() <= found.formats.items() and bool(formats) == bool(found.formats), found.line


@pytest.mark.slow
def test_half_precision_stays_half_precision(pipe, recorded, simulator):
    half = pipe.options(None).but(flow_dtype="bfloat16", n_timesteps=2)
    run = pipe.replay(recorded, "flow", half, wb.EVERYTHING)
    found = wb.find_suspects(recorded, wb.Trace(dict(run), {}), pipe, simulator=simulator)
    assert "flow-bfloat16" in found.explained_by and not found.formats


@pytest.mark.slow
def test_compare_with_a_format_calls_it_no_error(pipe, recorded):
    run = run_with(pipe, recorded, "q8_0:dynamic")
    blamed = wb.compare(recorded, run, pipe)
    assert blamed.causes
    for weights in ("q8_0:dynamic", "q8_0"):  # whether a program quantises inputs may be unknown
        found = wb.compare(recorded, run, pipe, weights)
        assert not found.causes and found.verdict == "DIVERGED"
        assert any(hint.startswith("weights as *=q8_0") for hint in found.hints)
        assert (found.to_frame()["of_format"].dropna() > 0).any()


@pytest.mark.slow
def test_compare_with_a_format_still_finds_a_fault(pipe, recorded):
    run = run_with(pipe, recorded, "q8_0", wb.faults.named("time-unscaled"))
    found = wb.compare(recorded, run, pipe, "q8_0")
    assert found.causes[0].name.startswith("flow/velocity_") and "its format" in str(found.causes[0])


def test_formats_that_are_tried_are_all_different():
    formats = every_format(MAX_GROUP)
    assert len(formats) == len(set(formats)) and "int8:channel,asymmetric,full" not in formats


def test_inputs_are_quantised_where_a_formats_kernels_do_so():
    assert with_inputs("int8:tensor") == "int8:tensor,dynamic"
    assert with_inputs("fp8_e4m3") == "fp8_e4m3:channel"


def test_layers_of_one_sort_differ_in_numbers_alone():
    assert sort_of("a.3.to_out.0") == sort_of("a.4.to_out.0") == "a.*.to_out.*"
