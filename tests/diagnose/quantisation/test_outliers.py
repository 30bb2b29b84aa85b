"""Weights, inputs and channels that stand out, and that looking changes nothing."""

import pytest
import torch

import workbench as wb


@pytest.fixture(scope="module")
def short_run(pipe, utt, short):
    return pipe.synthesise(utt, options=short, save=("lm/drawn_token", "flow/mel"))


def test_every_layer_has_a_row_and_looking_changes_nothing(pipe, short_run):
    table = wb.outliers(pipe, short_run).set_index("layer")
    assert list(table.index) == list(wb.layers(pipe.checkpoint)["layer"])
    assert (table["weight_peak"] >= 1).all() and (table["weight_channel"] >= 1).all()
    without_inputs = list(table.index[table["input_peak"].isna()])
    assert without_inputs == [
        "lm.llm.model.model.embed_tokens",
        "lm.speech_embedding",
        "flow.input_embedding",
    ]
    assert torch.equal(pipe.replay(short_run, "flow").wav, short_run.wav)
    for stage in ("lm", "flow"):
        model = pipe.stage(stage, "float32")
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_large_weight_and_a_large_input_stand_out(pipe, short_run):
    before = wb.outliers(pipe, short_run).set_index("layer")
    first = "flow.decoder.estimator.transformer_blocks.1.ff.ff.0.0"  # what it gives goes to the second
    second = "flow.decoder.estimator.transformer_blocks.1.ff.ff.2"
    model = pipe.stage("flow", "float32")
    layer = model.get_submodule(first.removeprefix("flow."))
    saved = {name: value.clone() for name, value in layer.state_dict().items()}
    try:
        layer.weight.data[5] *= 50
        layer.bias.data[5] = 1000.0
        after = wb.outliers(pipe, short_run).set_index("layer")
    finally:
        layer.load_state_dict(saved)
    assert after["weight_channel"][first] > 20 > before["weight_channel"][first]
    assert after["input_channel"][second] > 2 * before["input_channel"][second]
    assert after["channel"][second] == 5
    assert after["weight_peak"][second] == before["weight_peak"][second]


def test_a_trace_without_draws_is_refused(pipe, short_run):
    fields = {name: value for name, value in short_run.items() if name != "lm/drawn_token"}
    with pytest.raises(wb.WorkbenchError, match="lacks lm/drawn_token"):
        wb.outliers(pipe, wb.Trace(fields, short_run.attrs))
