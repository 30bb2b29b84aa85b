"""Runs with quantised weights: which layers change, what the trace says, and that the checkpoint stays as it is."""

from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from tests.paths import ROOT
from workbench.speech.checkpoint.quantised.layers import quantised
from workbench.speech.config import RELEASED
from workbench.speech.model_cache import MAX_QUANTISED

SHORT = {"max_tokens": 6, "n_timesteps": 1, "seed": 7}
VOCODER = ("hift", "float32", "float64", "float32")


@pytest.fixture(scope="module")
def own_pipe():
    """A pipeline for runs with other weights, so that the shared one does not keep their models."""
    voice = wb.Checkpoint.load(ROOT / "data" / "voices" / "tiny")
    return wb.Pipeline(voice, progress=False)


def short(pipe, **changes):
    return pipe.options(None).but(**SHORT, **changes)


@pytest.mark.parametrize("name", ("q8_0", "int8:channel", "mlx4", "fp8_e4m3"))
def test_a_layer_has_the_weight_that_quantise_returns(own_pipe, name):
    path = "flow.decoder.estimator.transformer_blocks.0.attn.to_q"
    flow = own_pipe.stage("flow", "float32", weights=f"{path}={name}")
    plain = own_pipe.stage("flow", "float32").state_dict()
    changed = [key for key, value in flow.state_dict().items() if not torch.equal(value, plain[key])]
    assert changed == [f"{path.removeprefix('flow.')}.weight"]
    expected = wb.quantise(plain[changed[0]], name).values
    assert torch.equal(flow.state_dict()[changed[0]], expected)
    half = own_pipe.stage("flow", "bfloat16", weights=f"{path}={name}").state_dict()[changed[0]]
    assert torch.equal(half, expected.bfloat16())


def test_of_a_weight_norm_the_product_is_quantised(own_pipe):
    plain = own_pipe.stage(*VOCODER).conv_pre.weight
    layer = own_pipe.stage(*VOCODER, weights="hift.conv_pre=int4:tensor").conv_pre
    expected = wb.quantise(plain, "int4:tensor").values
    assert not torch.equal(expected, plain)
    torch.testing.assert_close(layer.weight, expected, rtol=1e-6, atol=0)


def test_a_channel_of_zeros_does_not_become_nan():
    voice = wb.Checkpoint.load(ROOT / "data" / "voices" / "tiny")
    gain = voice.weights["hift"]["conv_pre.parametrizations.weight.original0"].clone()
    gain[3] = 1e-9  # so small beside the others that one scale for the tensor makes zeros of it
    voice.weights["hift"]["conv_pre.parametrizations.weight.original0"] = gain
    pipe = wb.Pipeline(voice, progress=False)
    weight = pipe.stage(*VOCODER, weights="hift.conv_pre=int8:tensor").conv_pre.weight
    assert not weight[3].any() and bool(weight.isfinite().all())


def test_embedding_and_tied_head_are_one_weight(own_pipe):
    lm = own_pipe.stage("lm", "float32", weights="lm.llm.model.model.embed_tokens=q4_0")
    head = lm.llm.model.lm_head.weight
    assert head is lm.qwen.embed_tokens.weight
    assert torch.equal(
        head, wb.quantise(own_pipe.stage("lm", "float32").qwen.embed_tokens.weight, "q4_0").values
    )
    assert "lm.llm.model.lm_head" not in set(wb.layers(own_pipe.checkpoint)["layer"])


def test_the_checkpoint_and_other_runs_stay_as_they_are(own_pipe, utt):
    before = own_pipe.synthesise(utt, options=short(own_pipe)).wav
    digest = own_pipe.checkpoint.content_hash
    low = own_pipe.synthesise(utt, options=short(own_pipe, weights="int4"))
    assert not torch.equal(low.wav[: len(before)], before[: len(low.wav)])
    assert torch.equal(own_pipe.synthesise(utt, options=short(own_pipe)).wav, before)
    fresh = wb.Checkpoint.load(ROOT / "data" / "voices" / "tiny")
    assert fresh.content_hash == digest
    for stage, weights in fresh.weights.items():
        assert all(
            torch.equal(value, own_pipe.checkpoint.weights[stage][key]) for key, value in weights.items()
        )


def test_float32_is_the_plain_run(own_pipe, utt):
    plain, same = (own_pipe.synthesise(utt, options=short(own_pipe, weights=w)) for w in (None, "float32"))
    assert torch.equal(plain.wav, same.wav) and "quantised" not in same.attrs


@pytest.mark.slow
def test_a_trace_says_the_weights_and_is_made_again_from_them(own_pipe, utt, tmp_path):
    options = short(own_pipe, weights={"lm": "q4_k", "flow": "int8"})
    made = own_pipe.synthesise(utt, options=options, save=wb.EVERYTHING)
    trace = wb.Trace.load(made.save(tmp_path / "low.trace"))
    assert trace.attrs["options"]["weights"] == "lm=q4_k;flow=int8:channel"
    assert trace.attrs["quantised"] == {
        "lm": "33 q4_k, 5 q5_0 in place of q4_k: 2.13 MB",
        "flow": "46 int8:channel: 5.46 MB",
    }
    assert "weights lm=q4_k;flow=int8:channel" in wb.plots.provenance(trace)
    assert torch.equal(own_pipe.replay(trace).wav, trace.wav)
    assert wb.compare(trace, own_pipe.replay(trace, save=wb.EVERYTHING), own_pipe).ok


@pytest.mark.slow
def test_compare_says_that_weights_differ_and_recomputes_with_the_candidates_own(own_pipe, utt):
    plain = own_pipe.synthesise(utt, options=short(own_pipe), save=wb.EVERYTHING)
    low = own_pipe.replay(plain, "flow", short(own_pipe, weights={"flow": "int4"}), save=wb.EVERYTHING)
    found = wb.compare(plain, low, own_pipe)
    assert "option weights: None and 'flow=int4:channel'" in found.input_differences
    # With its own weights, every field follows from what it was computed from: no place is a fault.
    assert not found.ok and found.causes == []


@pytest.mark.slow
@pytest.mark.parametrize("compute", ("exact", "fast"))
def test_fast_paths_have_the_same_quantised_weights(own_pipe, utt, compute):
    weights = {"*": "int4", "hift.f0_predictor": "float32"}
    options = short(own_pipe, weights=weights)
    eager = own_pipe.synthesise(utt, options=options)
    other = own_pipe.replay(eager, "flow", options.but(compute=compute))
    plain = own_pipe.replay(eager, "flow", short(own_pipe, compute=compute))
    error, change = ((run["flow/mel"] - eager["flow/mel"]).square().mean().sqrt() for run in (other, plain))
    assert error < change / (2 if compute == "fast" else 100)


def test_a_glob_that_matches_nothing_is_named_before_anything_runs(own_pipe, utt):
    with pytest.raises(
        wb.WorkbenchError, match=r"flow.decoder.estimatr.*did you mean flow.decoder.estimator"
    ):
        own_pipe.synthesise(utt, options=short(own_pipe, weights={"flow.decoder.estimatr": "q4_k"}))
    with pytest.raises(wb.WorkbenchError, match="matches none"):
        wb.layers(own_pipe.checkpoint, {"lm.norm": "q4_k"})


@pytest.mark.parametrize("option", ("estimator", "vocoder"))
def test_onnx_files_have_weights_of_their_own(own_pipe, utt, option):
    with pytest.raises(wb.WorkbenchError, match="weights of its own"):
        own_pipe.synthesise(utt, options=short(own_pipe, weights="q8_0", **{option: "onnx"}))


def test_inputs_are_quantised_in_linear_layers_and_not_by_fast_paths(own_pipe, recorded):
    def mel(weights, **changes):
        return own_pipe.replay(recorded, "flow", short(own_pipe, weights=weights, **changes))["flow/mel"]

    plain, weight_only, dynamic = (mel(each) for each in (None, "flow=int8", "flow=int8:dynamic"))
    errors = [float((each - plain).square().mean().sqrt()) for each in (weight_only, dynamic)]
    assert 0 < errors[0] < errors[1] < 20 * errors[0]
    with pytest.raises(wb.WorkbenchError, match="compute='eager' alone"):
        mel("flow=int8:dynamic", compute="exact")


def test_a_sweep_of_weights_keeps_few_models(voice):
    pipe = wb.Pipeline(voice, progress=False)
    plain, used = pipe.stage("flow", "float32"), pipe.stage("flow", "float32", weights="int8")
    for layer in wb.layers(voice)["layer"][lambda names: names.str.startswith("flow.")][:8]:
        pipe.stage("flow", "float32", weights=f"{layer}=int8")
        assert pipe.stage("flow", "float32", weights="int8") is used  # not the oldest as long as it is in use
    assert len(pipe.models._eager) == 1 + MAX_QUANTISED and pipe.stage("flow", "float32") is plain


def test_a_weight_with_nan_is_named():
    voice = wb.Checkpoint.load(ROOT / "data" / "voices" / "tiny")
    voice.weights["lm"]["llm_decoder.weight"] = torch.full_like(
        voice.weights["lm"]["llm_decoder.weight"], torch.nan
    )
    with pytest.raises(wb.WorkbenchError, match=r"lm\.llm_decoder: a weight .* has NaN"):
        wb.Pipeline(voice, progress=False).stage("lm", "float32", weights="q4_k")


def test_the_table_of_layers_counts_what_a_model_holds(voice):
    table = wb.layers(voice)
    assert set(table["format"]) == {"float32"}
    for stage, module in (("lm", voice.lm()), ("flow", voice.flow()), ("hift", voice.hift())):
        rows = table[table["layer"].str.startswith(f"{stage}.")]
        matrices = {
            id(m.weight): m.weight for m in module.modules() if m._parameters.get("weight") is not None
        }
        plain = sum(w.nbytes for w in matrices.values() if w.ndim > 1)
        folded = [m for m in module.modules() if hasattr(m, "parametrizations")]
        assert rows["nbytes"].sum() == plain + sum(m.weight.nbytes for m in folded)
    assert quantised(voice, "lm=q4_k").keys() == {"lm"}


@pytest.mark.slow
def test_most_layers_of_the_released_lm_cannot_be_super_blocks():
    checkpoint = SimpleNamespace(config=RELEASED)  # its sizes; a table needs no weights
    rows = wb.layers(checkpoint, {"lm": "q4_k"})
    counts = rows[rows["layer"].str.startswith("lm.")]["format"].value_counts()
    assert counts.to_dict() == {"q5_0": 147, "q4_k": 24}  # 896 columns, and 4864 of the second feed-forward


@pytest.mark.slow
def test_a_sweep_shares_the_stages_that_weights_leave_alone(own_pipe, utt):
    runs = wb.CachedRuns(own_pipe)
    plain = runs.run(utt, short(own_pipe))
    low = runs.run(utt, short(own_pipe, weights={"flow": "int4"}))
    assert low.attrs["timings"]["lm"] == plain.attrs["timings"]["lm"]  # so the LM ran once
    assert "quantised" not in plain.attrs
    assert low.attrs["quantised"].keys() == {"flow"}
    assert not torch.equal(low["flow/mel"], plain["flow/mel"])
