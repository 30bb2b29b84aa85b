"""A run can be recorded without being changed, and made again from any place in it."""

import pytest
import torch

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.speech.recording import utterance_of


@pytest.fixture(scope="module")
def whole(recorded, tmp_path_factory):
    """A recorded run, from disk."""
    return wb.Trace.load(recorded.save(tmp_path_factory.mktemp("runs") / "run.safetensors"))


@pytest.mark.slow
def test_recording_changes_nothing(pipe, utt, whole):
    for save in (wb.NOTHING, wb.SUMMARY, "flow/velocity*"):
        trace = pipe.synthesise(utt, seed=7, save=save)
        assert torch.equal(trace.wav, whole.wav) and torch.equal(trace["flow/mel"], whole["flow/mel"])


def test_everything_is_kept(pipe, whole):
    steps = pipe.checkpoint.options.n_timesteps
    n_frames = whole.prompt_frames + whole["flow/mel"].shape[1]
    assert whole["flow/x"].shape == (steps + 1, 80, n_frames) and whole["flow/t"].shape == (steps + 1,)
    assert whole["flow/velocity"].shape == (steps, 80, n_frames)
    assert torch.equal(whole["flow/x"][0], whole["flow/noise"])
    assert torch.equal(whole.select("flow/x", knot=-1, region="target"), whole["flow/mel"])
    rate = whole.attrs["options"]["cfg_rate"]
    guided = (1 + rate) * whole["flow/velocity_cond"] - rate * whole["flow/velocity_uncond"]
    assert torch.allclose(guided, whole["flow/velocity"], atol=1e-5)
    assert whole["lm/logp"].shape[0] == len(whole["lm/drawn_token"]) == len(whole["lm/entropy"])
    assert whole.attrs["checkpoint"]["content_hash"] == pipe.checkpoint.content_hash
    assert whole.attrs["options"]["seed"] == 7 and whole.attrs["prompt"]["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["lm", "flow", "flow/step/0", "flow/step/6", "hift"])
def test_replay_is_bit_for_bit(pipe, whole, stage):
    again = pipe.replay(whole, stage)
    assert torch.equal(again.wav, whole.wav)


def test_replay_with_other_options(pipe, whole):
    options = pipe.checkpoint.options.but(**whole.attrs["options"])
    one = pipe.replay(whole, "flow", options=options.but(n_timesteps=1))
    assert torch.equal(one["lm/speech_token"], whole["lm/speech_token"])
    assert not torch.equal(one["flow/mel"], whole["flow/mel"])


@pytest.mark.slow
def test_stops_where_it_is_told(pipe, utt, whole):
    early = pipe.synthesise(utt, seed=7, save="flow/*", stop_after="flow/step/3")
    assert torch.equal(early["flow/x"], whole["flow/x"][:5]) and "flow/mel" not in early
    assert early.seconds == 0 and "hift" not in early.attrs["timings"]
    assert set(pipe.synthesise(utt, seed=7, stop_after="lm").attrs["timings"]) == {"lm"}
    part = pipe.replay(whole, "flow/step/4", save="flow/x", stop_after="flow/step/4")
    assert torch.equal(part["flow/x"], whole["flow/x"][4:6]) and part.attrs["first_step"] == 4


@pytest.mark.parametrize("place", ["", "dit", "flow/step/", "flow/step/10", "flow/step/-1", "lm/step/1"])
def test_no_such_place(pipe, utt, place):
    with pytest.raises(WorkbenchError, match="no place"):
        pipe.synthesise(utt, stop_after=place)


def test_what_a_trace_does_not_hold(pipe, utt, whole):
    silent = pipe.synthesise(utt, seed=7, stop_after="lm")
    with pytest.raises(WorkbenchError, match="flow/x"):
        pipe.replay(silent, "flow/step/3")
    with pytest.raises(WorkbenchError, match="flow/mel"):
        pipe.replay(silent, "hift")
    with pytest.raises(WorkbenchError, match="before"):
        pipe.replay(whole, "hift", stop_after="flow")
    foreign = wb.Trace({"flow/mel": whole["flow/mel"]}, {"sample_rate": 24000})
    with pytest.raises(WorkbenchError, match="in/text_token"):
        utterance_of(foreign)
    assert torch.equal(pipe.replay(foreign, "hift").wav, whole.wav)


def test_a_run_behind_the_lm_needs_no_inputs_of_the_lm(pipe, whole):
    kept = ("in/flow_prompt_token", "in/prompt_mel", "in/spk_embedding", "lm/speech_token")
    foreign = wb.Trace({name: whole[name] for name in kept}, {"sample_rate": 24000})
    again = pipe.replay(foreign, "flow", save=wb.EVERYTHING)
    assert torch.equal(again.wav, whole.wav)
    assert set(kept) <= set(again) and not {"in/text_token", "in/lm_prompt_token"} & set(again)
    with pytest.raises(WorkbenchError, match="in/text_token"):
        pipe.replay(foreign, "lm")
    with pytest.raises(WorkbenchError, match="in/prompt_mel"):
        pipe.replay(wb.Trace({"lm/speech_token": whole["lm/speech_token"]}, {"sample_rate": 24000}), "flow")


@pytest.mark.slow
def test_conversion_is_recorded_too(pipe):
    utt = pipe.convert("data/prompts/alpha_1.flac", "data/prompts/kumo_0.flac")
    trace = pipe.synthesise(utt, save=wb.SUMMARY)
    assert torch.equal(trace["in/source_token"], trace["lm/speech_token"])
    assert torch.equal(pipe.replay(trace).wav, trace.wav)
    assert trace.stats("flow/velocity").index.names == ["step", "region"]
