"""Which weights may be quantised: what is measured, the search in parts, and formats under a limit."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.diagnose.precision import bisect_precision
from workbench.diagnose.quantisation.measure import Change, References
from workbench.diagnose.quantisation.mlx import mlx_quantization
from workbench.diagnose.quantisation.recommend import FORMATS, recommend
from workbench.diagnose.quantisation.units import block_of

QWEN = "lm.llm.model.model.layers"
KNOWN = wb.data_path("accuracy/quantise.csv")


@pytest.fixture(scope="module")
def references(pipe, utt, short):
    return References(pipe, utt, short, [7])


@pytest.fixture
def additive(monkeypatch):
    """Replace measuring: squares of decibels and divergences of the stored table add up."""
    table = pd.read_csv(KNOWN).set_index(["block", "format"])
    asked = []

    def change(self, weights):
        parts = [part.split("=") for part in weights.split(";") if part]
        asked.append(weights)
        rows = []
        for unit, name in parts:
            inside = [
                block
                for block in table.index.get_level_values(0).unique()
                if f"{block}.".startswith(f"{unit}.")
            ]
            rows += [table.loc[(block, name)] for block in inside or [block_of(unit)]]
        sound_db, f0_hz = (sum(row[name] ** 2 for row in rows) ** 0.5 for name in ("sound_db", "f0_hz"))
        return Change(kl=sum(row["kl"] for row in rows), sound_db=sound_db, f0_hz=f0_hz)

    monkeypatch.setattr(References, "change", change)
    return asked


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        (
            "flow.decoder.estimator.transformer_blocks.3.ff.ff.0.0",
            "flow.decoder.estimator.transformer_blocks.3",
        ),
        ("hift.resblocks.11.convs1.2", "hift.resblocks.11"),
        ("lm.speech_embedding", "lm.speech_embedding"),
    ],
)
def test_a_block_ends_at_the_first_number(layer, block):
    assert block_of(layer) == block


@pytest.mark.parametrize(
    "weights", ["lm.llm.model.model.layers.1=q4_0", "flow.decoder=q8_0", "hift.ups.0=int8"]
)
def test_the_change_is_that_of_a_run_with_these_options(references, pipe, short, weights):
    [run] = references.runs
    found = references.change(weights)
    stage = weights.partition(".")[0]
    if stage == "lm":
        assert found.kl > 0 and found.redrawn > 0 and found.sound_db == 0
        return
    other = pipe.replay(run, stage, short.but(weights=weights), save=("flow/mel", "hift/f0"))
    assert found.own_db == pytest.approx(wb.metrics.sound_db(other, run), rel=1e-4)
    hift = pipe.stage(
        "hift", "float32", short.f0_dtype, short.source_dtype, weights=short.but(weights=weights).weights
    )
    noise = pipe.checkpoint.noise.excitation(other["flow/mel"].shape[-1] * 480)
    with torch.no_grad():
        held = hift(other["flow/mel"][None], noise, source=run["hift/source"][None, None]).wav[0]
    assert found.sound_db == pytest.approx(
        wb.metrics.sound_db(wb.Trace({"hift/wav": held}, {}), run), rel=1e-3
    )
    assert found.mel_l1 == pytest.approx(wb.metrics.mel_l1(other, run), rel=1e-4, abs=1e-12)


def test_models_are_put_back_to_the_last_bit(references, pipe, utt, short):
    references.change("*=q4_0")
    again = pipe.synthesise(utt, options=short, save=("lm/logp", "flow/mel"))
    [run] = references.runs
    assert torch.equal(again.wav, run.wav) and torch.equal(again["lm/logp"], run["lm/logp"])
    with pytest.raises(wb.WorkbenchError, match="matches none of the"):
        references.change("lm.layers=q4_0")
    assert torch.equal(pipe.synthesise(utt, options=short).wav, run.wav)


def test_a_format_that_changes_nothing_changes_nothing(references):
    found = references.change("lm=float32;flow=float32")
    assert found.within(0, 1e-9) and found.redrawn < 1e-6  # the LM reads all draws in one pass


def test_a_voice_that_breaks_is_infinitely_far(references, pipe, monkeypatch):
    def broken(*args, **kwargs):
        raise wb.WorkbenchError("the flow made a mel of NaN")

    monkeypatch.setattr(pipe, "replay", broken)
    found = references.change("flow=q8_0")
    assert found.sound_db == float("inf") and not found.within(1e9, 1e9)


def test_nan_is_within_no_limit():
    assert not Change(sound_db=float("nan")).within(1, 1)
    assert not Change(kl=float("nan")).within(1, 1)


# The search in parts


def test_parts_that_change_too_much_are_opened(additive, pipe, utt, short):
    found = bisect_precision(pipe, utt, "q4_k", short)
    parts = found.rows.set_index("part")["safe"]
    assert parts["lm"] and not parts["flow"]
    assert "lm" in found.safe_parts
    assert "flow.decoder.estimator.transformer_blocks.2" in parts.index
    assert found.together.within(1.0, 0.01)
    assert set(found.recommended.values()) == {"q4_k"}
    assert "q4_k is safe for lm" in found.line and "not for" in found.line


def test_what_is_safe_together_leaves_out_as_little_as_it_can(additive, pipe, utt, short):
    found = bisect_precision(pipe, utt, "q8_0", short)
    left_out = found.rows[found.rows["safe"] & ~found.rows["part"].isin(found.safe_parts)]
    if len(left_out):  # one more would be too much
        least = left_out.sort_values("sound_db").iloc[0]
        assert (found.together.sound_db**2 + least["sound_db"] ** 2) ** 0.5 > 1.0
    assert found.together.sound_db <= 1.0


@pytest.mark.parametrize("utts", [[], "text", [1], None])
def test_what_is_no_utterance_is_refused(pipe, utts, short):
    with pytest.raises(wb.WorkbenchError, match="expected one or more utterances"):
        bisect_precision(pipe, utts, "q8_0", short)


def test_an_unknown_format_is_refused_before_anything_runs(pipe, utt, short):
    with pytest.raises(wb.WorkbenchError, match="there is no format 'q9'"):
        bisect_precision(pipe, utt, "q9", short)


@pytest.mark.slow
def test_half_precision_takes_several_utterances(pipe, utt, short):
    one = bisect_precision(pipe, utt, "float16", short).rows
    two = bisect_precision(pipe, [utt, utt], "float16", short, seeds=[7]).rows
    pd.testing.assert_frame_equal(one, two)


# Formats under a limit


def test_a_budget_is_kept_with_the_cheapest_steps_first(additive, pipe, utt, short):
    known = pd.read_csv(KNOWN)
    found = recommend(pipe, utt, budget="60%", options=short, sensitivity=known)
    assert found.nbytes <= 0.6 * found.base_nbytes
    before = found.curve["nbytes"].shift(1)
    assert (found.curve["nbytes"].diff().dropna() < 0).all()
    last = found.curve["nbytes"].tolist().index(found.nbytes)
    assert before[last] > 0.6 * found.base_nbytes  # no step too many
    assert found.change.sound_db == pytest.approx(found.curve["sound_db"][last])
    table = wb.layers(pipe.checkpoint, found.weights)
    assert table["nbytes"].sum() == found.nbytes
    assert f"{found.nbytes / found.base_nbytes:.0%} of float16" in found.line
    assert len(additive) == 1  # the whole, once


def test_a_limit_is_used_up(additive, pipe, utt, short):
    known = pd.read_csv(KNOWN)
    found = recommend(pipe, utt, max_db=1.0, options=short, sensitivity=known)
    assert found.change.within(1.0, 0.01)
    place = found.curve["nbytes"].tolist().index(found.nbytes) + 1
    following = found.curve.iloc[place]
    assert following["sound_db"] > 1.0 or following["kl"] > 0.01
    assert found.curve["measured_db"].notna().sum() <= np.ceil(np.log2(len(found.curve))) + 1


def test_a_limit_that_nothing_holds_leaves_all_as_it_is(pipe, utt, short, monkeypatch):
    monkeypatch.setattr(References, "change", lambda self, weights: Change(sound_db=9.0))
    found = recommend(pipe, utt, max_db=1.0, options=short, sensitivity=pd.read_csv(KNOWN))
    assert found.weights == {} and found.change == Change() and found.nbytes == 2 * found.base_nbytes


def test_formats_go_to_options_toml_llama_and_mlx(additive, pipe, utt, short, tmp_path):
    known = pd.read_csv(KNOWN)
    found = recommend(pipe, utt, budget="60%", options=short, sensitivity=known)
    path = found.save(tmp_path / "map.toml")
    assert wb.Options(weights=path).weights == wb.Options(weights=found.weights).weights
    only_ggml = [name for name in FORMATS if name != "int8"]
    ours = recommend(pipe, utt, budget="75%", options=short, sensitivity=known, formats=only_ggml)
    arguments = ours.llama_tensor_types()
    name = ours.weights["lm.llm.model.model.layers.2"]
    assert rf"blk\.2\.={name}" in arguments and arguments.count("--tensor-type") == 5
    with pytest.raises(wb.WorkbenchError, match=r"which MLX does not have; try formats=\('float16', 'mlx8'"):
        ours.mlx_quantization()


def test_the_settings_for_mlx_are_a_config_that_mlx_lm_takes(pipe, tmp_path):
    rules = {"lm": "mlx4:group=64", f"{QWEN}.0": "mlx8:group=32", f"{QWEN}.1.mlp": "float16", "flow": "q4_k"}
    quantization = mlx_quantization(wb.layers(pipe.checkpoint, rules))
    assert (quantization["group_size"], quantization["bits"], quantization["mode"]) == (32, 4, "affine")
    assert quantization["model.layers.0.self_attn.q_proj"] == {"group_size": 32, "bits": 8}
    assert quantization["model.layers.1.mlp.up_proj"] is False
    assert quantization["model.embed_tokens"] == quantization["llm_decoder"] == {"group_size": 64, "bits": 4}
    modules = {
        path: each for path, each in quantization.items() if path not in ("group_size", "bits", "mode")
    }
    n_layers = sum(name.startswith("lm.") for name in wb.layers(pipe.checkpoint)["layer"])
    assert len(modules) == n_layers and not any(path.startswith(("lm.", "flow")) for path in modules)
    for each in modules.values():  # of an affine quantisation; anything else stops mlx
        assert each is False or (each["group_size"] in (32, 64, 128) and each["bits"] in (4, 8))
    with pytest.raises(wb.WorkbenchError, match="no layer of the LM is in a format of MLX"):
        mlx_quantization(wb.layers(pipe.checkpoint, "float16"))


def test_the_file_for_mlx_holds_the_settings(pipe, utt, short, additive, tmp_path):
    found = recommend(pipe, utt, budget="75%", options=short, sensitivity=pd.read_csv(KNOWN))
    found = dataclasses.replace(found, layers=wb.layers(pipe.checkpoint, {"lm": "mlx4"}))
    saved = json.loads(found.save_mlx(tmp_path / "mlx.json").read_text())
    assert saved == {"quantization": mlx_quantization(found.layers)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected one of budget"),
        ({"budget": "50%", "max_db": 1.0}, "expected one of budget"),
        ({"budget": "1 kB"}, "is the least with"),
        ({"budget": "much"}, "expected bytes, or text such as"),
        ({"budget": -5}, "expected bytes, or text such as"),
        ({"budget": "1.2.3 MB"}, "expected bytes, or text such as"),
        ({"budget": "50%", "formats": ["q9"]}, "there is no format 'q9'"),
        ({"budget": "50%", "formats": ["mlx4"]}, "does not hold the blocks of this voice in mlx4"),
    ],
)
def test_what_cannot_be_chosen_is_said(additive, pipe, utt, short, arguments, message):
    with pytest.raises(wb.WorkbenchError, match=message):
        recommend(pipe, utt, options=short, sensitivity=pd.read_csv(KNOWN), **arguments)


def test_a_table_of_another_voice_is_refused(additive, pipe, utt, short):
    known = pd.read_csv(KNOWN)
    known.loc[0, "nbytes"] += 1
    with pytest.raises(wb.WorkbenchError, match="does not hold the blocks of this voice"):
        recommend(pipe, utt, budget="60%", options=short, sensitivity=known)
    with pytest.raises(wb.WorkbenchError, match="sensitivity lacks kl"):
        recommend(pipe, utt, budget="60%", options=short, sensitivity=known.drop(columns="kl"))


def test_each_block_is_tried_in_each_format(additive, pipe, utt, short):
    found = recommend(pipe, utt, budget="60%", options=short, formats=["float16", "int8"])
    blocks = {block_of(layer) for layer in wb.layers(pipe.checkpoint)["layer"]}
    assert len(found.sensitivity) == 3 * len(blocks) and len(additive) == 2 * len(blocks) + 1
