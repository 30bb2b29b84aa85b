"""The benchmarks measure what they say; how fast anything is, no test asks."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from workbench.cli import main
from workbench.diagnose.benchmarks import accuracy as deviation
from workbench.diagnose.benchmarks import speed
from workbench.speech.config import COMPUTE


@pytest.fixture(scope="module")
def voice():
    """The bundled voice with two steps in place of ten."""
    voice = wb.Checkpoint.load("data/voices/tiny")
    return dataclasses.replace(voice, options=voice.options.but(n_timesteps=2))


@pytest.fixture(scope="module")
def short(voice):
    """One second of speech; one round; a sweep of three; small products."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SWEEP", 3)
        patch.setitem(speed.SIDE, "cpu", 256)  # 1024 takes a minute in bfloat16
        return speed.measure_speed(voice, lengths=(1.0,), batches=(1, 2), rounds=1)


@pytest.mark.slow
def test_every_way_and_stage_is_timed(short):
    alone, pair = (short.stages[short.stages.batch == n] for n in (1, 2))
    assert list(zip(alone.compute, alone.stage, strict=True)) == [
        (turn, stage) for turn in (*COMPUTE, "eager again") for stage in ("lm", "flow", "hift")
    ]
    assert set(pair.compute) == {"exact", "fast"} and pair.ratio.isna().all()
    assert (short.stages.seconds > 0).all() and (short.stages.low <= short.stages.high).all()
    assert (alone[alone.compute == "eager"].ratio == 1).all()
    assert short.first.compute.tolist() == list(COMPUTE) and short.first.gigabytes.isna().all()  # no GPU
    assert short.sweep.compute.tolist() == ["exact", "fast"] and (short.sweep.variants == 3).all()


@pytest.mark.slow
def test_times_fit_together(short):
    runs = short.runs.set_index(["compute", "batch"])
    for (way, n), row in runs.iterrows():
        stages = short.stages[(short.stages.compute == way) & (short.stages.batch == n)]
        assert stages.seconds.sum() == pytest.approx(row.seconds * n, rel=0.2)
        assert row.rtf == pytest.approx(row.seconds / 1.0)
        lm = stages[stages.stage == "lm"].seconds.item()
        assert row.tokens_per_second == pytest.approx(25 * n / lm)


@pytest.mark.slow
def test_work_is_counted(voice, short):
    """By hand: what the LM reads for a token, and the flow's products for one of its linear layers alone."""
    lm, dit = voice.config.lm, voice.config.flow.dit
    width, kv = lm.hidden_size, lm.num_key_value_heads * lm.head_dim
    layer = width * (2 * width + 2 * kv) + width + 2 * kv + 3 * width * lm.intermediate_size + 2 * width
    read = 4 * (lm.num_hidden_layers * layer + width + width * lm.n_ids)
    row = short.stages.set_index(["compute", "batch", "stage"]).loc[("eager", 1, "lm")]
    assert row.per_second * row.seconds == pytest.approx(25 * read)
    frames = 2 * (25 + short.about["prompt_tokens"])
    inner = dit.heads * dit.dim_head
    products = dit.depth * (4 * dit.dim * inner + 2 * dit.dim * dit.dim * dit.ff_mult)
    least = 2 * 2 * 2 * frames * products  # steps, both halves, two operations a product
    row = short.stages.set_index(["compute", "batch", "stage"]).loc[("eager", 1, "flow")]
    assert least < row.per_second * row.seconds < 2 * least


@pytest.mark.slow
def test_a_share_is_of_a_measured_ceiling(short):
    most = short.about["ceilings"]
    assert most.keys() == {"bytes", "float32", "tf32", "bfloat16"} and all(v > 0 for v in most.values())
    for row in short.stages.itertuples():
        assert row.share == pytest.approx(row.per_second / most[row.of])


@pytest.mark.slow
def test_it_is_json_and_text(short):
    again = json.loads(json.dumps(short.to_dict()))
    assert again["about"]["checkpoint"] == "tiny" and len(again["stages"]) == len(short.stages)
    assert "eager again" in str(short) and str(round(short.about["text_tokens"])) in str(short)


@pytest.mark.slow
def test_deviation_of_exact_is_rounding(voice):
    pipe = wb.Pipeline(voice, progress=False)
    utt = pipe.prepare("Hello there.", "data/prompts/kumo_0.flac")
    options = voice.options.but(max_tokens=20)
    exact, fast = deviation.deviation(pipe, [utt], options).itertuples()
    assert (exact.compute, fast.compute) == ("exact", "fast")
    assert exact.same_tokens == 1 and exact.mel_l1 < 1e-5 and exact.snr_db > 60
    assert fast.mel_l1 > 100 * exact.mel_l1


def test_tokens_are_the_same_until_they_part():
    assert deviation._same([1, 2, 3], [1, 2, 3]) == 1
    assert deviation._same([1, 2, 3, 4], [1, 2]) == 0.5
    assert deviation._same([1, 9], [1, 2, 3, 4]) == 0.25


def test_snr_is_in_decibel():
    right, found = (SimpleNamespace(wav=torch.full((100,), value)) for value in (1.0, 1.1))
    assert math.isclose(deviation._snr(found, right), 20, abs_tol=1e-4)


@pytest.mark.slow
def test_bench_writes_what_it_prints(tmp_path, capsys, monkeypatch, short):
    asked = []
    monkeypatch.setattr(speed, "measure_speed", lambda *args: asked.append(args) or short)
    out = tmp_path / "speed.json"
    assert main(["bench", "--seconds", "2", "30", "--batch", "4", "--rounds", "3", "--out", str(out)]) == 0
    [(voice, device, seconds, batches, rounds, _)] = asked
    assert (voice.name, device, seconds, batches, rounds) == ("tiny", "cpu", [2, 30], [4], 3)
    assert str(short) in capsys.readouterr().out
    assert json.loads(out.read_text()) == json.loads(json.dumps(short.to_dict()))
