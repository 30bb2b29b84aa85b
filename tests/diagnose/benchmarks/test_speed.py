"""The speed benchmark measures what it says. No test depends on how fast the machine is."""

import dataclasses
import json
from functools import partial

import pytest

import workbench as wb
from workbench.cli import main
from workbench.diagnose.benchmarks import speed
from workbench.diagnose.benchmarks.trace_overhead import utterance_of_length
from workbench.speech.config import COMPUTE, RELEASED

pytestmark = pytest.mark.slow

SECONDS = 0.4  # of speech
TOKENS = round(SECONDS * RELEASED.token_rate)


@pytest.fixture(scope="module")
def short_voice(voice):
    """The bundled voice with two ODE steps in place of ten."""
    return dataclasses.replace(voice, options=voice.options.but(n_timesteps=2))


@pytest.fixture(scope="module")
def short(short_voice):
    """The result for a short utterance: one round, three variants, a short prompt and small ceilings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SWEEP_VARIANTS", 3)
        patch.setattr(speed, "COPY_BYTES", 2**20)
        patch.setattr(speed, "utterance_of_length", partial(utterance_of_length, prompt=10))
        patch.setattr(speed, "MATRIX_SIDE", {"cpu": 128})
        return speed.measure_speed(short_voice, lengths=(SECONDS,), batches=(1, 2), rounds=1)


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


def test_stages_add_up_to_the_run(short):
    runs = short.runs.set_index(["compute", "batch"])
    for (way, n), row in runs.iterrows():
        stages = short.stages[(short.stages.compute == way) & (short.stages.batch == n)]
        assert stages.seconds.sum() == pytest.approx(row.seconds * n, rel=0.2)
        assert row.rtf == pytest.approx(row.seconds / SECONDS)
        lm = stages[stages.stage == "lm"].seconds.item()
        assert row.tokens_per_second == pytest.approx(TOKENS * n / lm)


def test_work_is_counted(short_voice, short):
    """Counted by hand: the weights that the LM reads for a token, and the products of the flow's linear layers."""
    lm, dit = short_voice.config.lm, short_voice.config.flow.dit
    width, kv = lm.hidden_size, lm.num_key_value_heads * lm.head_dim
    layer = width * (2 * width + 2 * kv) + width + 2 * kv + 3 * width * lm.intermediate_size + 2 * width
    read = 4 * (lm.num_hidden_layers * layer + width + width * lm.n_ids)
    row = short.stages.set_index(["compute", "batch", "stage"]).loc[("eager", 1, "lm")]
    assert row.per_second * row.seconds == pytest.approx(TOKENS * read)
    frames = 2 * (TOKENS + short.about["prompt_tokens"])
    inner = dit.heads * dit.dim_head
    products = dit.depth * (4 * dit.dim * inner + 2 * dit.dim * dit.dim * dit.ff_mult)
    least = 2 * 2 * 2 * frames * products  # steps, both halves, two operations a product
    row = short.stages.set_index(["compute", "batch", "stage"]).loc[("eager", 1, "flow")]
    assert least < row.per_second * row.seconds < 2 * least


def test_a_share_is_of_a_measured_ceiling(short):
    ceilings = short.about["ceilings"]
    assert ceilings.keys() == {"bytes", "float32", "tf32", "bfloat16"} and all(
        v > 0 for v in ceilings.values()
    )
    for row in short.stages.itertuples():
        assert row.share == pytest.approx(row.per_second / ceilings[row.of])


def test_result_is_json_and_text(short):
    again = json.loads(json.dumps(short.to_dict()))
    assert again["about"]["checkpoint"] == "tiny" and len(again["stages"]) == len(short.stages)
    assert "eager again" in str(short) and str(round(short.about["text_tokens"])) in str(short)


def test_summary_has_the_figures_of_the_first_length(short):
    summary = speed.Speed.from_dict(short.to_dict()).summary().set_index("figure")
    assert list(summary.columns) == list(COMPUTE)
    runs = short.runs.set_index(["compute", "batch"])
    assert summary.loc["RTF, one utterance", "eager"] == runs.loc[("eager", 1), "rtf"]
    assert summary.loc["RTF per utterance, 2 at a time", "fast"] == runs.loc[("fast", 2), "rtf"]
    stages = short.stages.set_index(["compute", "batch", "stage"])
    assert summary.loc["flow, 0.4 s of speech [s]", "exact"] == stages.loc[("exact", 1, "flow"), "seconds"]


def test_bench_writes_what_it_prints(tmp_path, capsys, monkeypatch, short):
    calls = []
    monkeypatch.setattr(speed, "measure_speed", lambda *args: calls.append(args) or short)
    out = tmp_path / "speed.json"
    assert (
        main(
            [
                "bench",
                "speed",
                "--seconds",
                "2",
                "--seconds",
                "30",
                "--batch",
                "4",
                "--rounds",
                "3",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    [(checkpoint, device, seconds, batches, rounds, _)] = calls
    assert isinstance(checkpoint, wb.Checkpoint) and checkpoint.name == "tiny"
    assert (device, seconds, batches, rounds) == ("cpu", [2, 30], [4], 3)
    assert str(short) in capsys.readouterr().out
    assert json.loads(out.read_text()) == json.loads(json.dumps(short.to_dict()))
