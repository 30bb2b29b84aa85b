"""Streams: the vocoder sees a window, several run at a time, and both give the samples of one that does neither."""

import gc
from dataclasses import replace

import pytest
import torch

import workbench as wb
from workbench.speech.models.hift_window import Past, context_frames
from workbench.speech.streaming import render
from workbench.speech.streaming.state import StreamState

PROMPT = "data/prompts/kumo_0.flac"
SHORT = {"n_timesteps": 1}


@pytest.fixture(scope="module")
def conversion(pipe):
    """2.4 s of speech, three or more chunks."""
    whole = pipe.convert("data/prompts/kumo_1.flac", PROMPT)
    return replace(whole, source_token=whole.source_token[:60])


def sound(chunks):
    return torch.cat([chunk.wav for chunk in chunks])


CASES = {
    "growing": ({}, StreamState(15)),
    "final chunk under the mask": ({"stream_final_offline": False}, StreamState(15)),
    "fixed hop": ({}, StreamState(12, max_hop=12)),
    "short first hop": ({}, StreamState(4)),
    "exact": ({"compute": "exact"}, StreamState(15)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "state"), CASES.values(), ids=CASES)
def test_a_window_gives_the_samples_of_all_mel(pipe, conversion, changes, state, monkeypatch):
    options = pipe.checkpoint.options.but(**SHORT, **changes)
    frames = []
    vocode_batch = type(pipe).vocode_batch

    def watched(self, mels, *args):
        frames.extend(mel.shape[-1] for mel in mels)
        return vocode_batch(self, mels, *args)

    monkeypatch.setattr(type(pipe), "vocode_batch", watched)
    chunks = list(wb.stream(pipe, conversion, options, state))
    longest = max(len(chunk.wav) for chunk in chunks) // 480
    assert max(frames[1:]) <= longest + context_frames(pipe.config.hift) + 8  # 8 frames are look-ahead
    # Now each chunk vocodes all mel so far, as upstream does.
    monkeypatch.setattr(Past, "at", lambda self, frame, f0, config: self)
    expected = list(wb.stream(pipe, conversion, options, state))
    assert frames[-1] == chunks[-1].state.mel.shape[-1]
    assert [c.n_token for c in chunks] == [c.n_token for c in expected] and len(chunks) > 2
    assert torch.equal(chunks[-1].state.mel, expected[-1].state.mel)
    error = sound(chunks) - sound(expected)
    assert error.square().mean().sqrt() < 1e-5 and error.abs().max() < 1e-3
    if state.max_hop == state.hop:
        assert {len(chunk.wav) for chunk in chunks[1:-1]} == {state.hop * 960}


@pytest.mark.parametrize("hops", [{"hop": 0}, {"hop": -5}, {"hop": 2.5}, {"hop": 25, "max_hop": 0}])
def test_a_hop_of_no_token_is_refused(hops):
    with pytest.raises(wb.WorkbenchError, match="whole number of tokens"):
        StreamState(**hops)


@pytest.fixture(scope="module")
def three(pipe, conversion):
    """Two texts of different lengths, and a conversion."""
    texts = ("Eight months to Mars.", "It is late.")
    return [*(pipe.prepare(text, PROMPT) for text in texts), conversion]


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["eager", "exact"])
def test_streams_at_a_time_equal_each_alone(pipe, three, compute):
    options = pipe.checkpoint.options.but(**SHORT, compute=compute, seed=7, max_tokens=35)
    state = StreamState(15)
    found = {i: [] for i in range(len(three))}
    for index, chunk in wb.stream_many(pipe, three, options, state):
        found[index].append(chunk)
    for index, utt in enumerate(three):
        alone = list(wb.stream(pipe, utt, options, state))
        assert [(c.n_token, c.final, c.token[: c.n_token], len(c.wav)) for c in found[index]] == [
            (c.n_token, c.final, c.token[: c.n_token], len(c.wav)) for c in alone
        ]
        assert found[index][-1].token == alone[-1].token
        error = sound(found[index]) - sound(alone)
        assert error.square().mean().sqrt() < 2e-3 and error.abs().max() < 5e-2


@pytest.mark.slow
def test_chunks_that_are_due_together_share_a_pass(pipe, utt, monkeypatch):
    """In a batch the LM draws for all, so that equal streams are due at the same time."""
    rows = []
    new_mels = render._new_mels

    def watched(pipe, chunks, *args):
        rows.append(len(chunks))
        return new_mels(pipe, chunks, *args)

    monkeypatch.setattr(render, "_new_mels", watched)
    options = pipe.checkpoint.options.but(**SHORT, compute="exact", max_tokens=40)
    utts = [replace(utt) for _ in range(3)]
    yielded = [(index, chunk.final) for index, chunk in wb.stream_many(pipe, utts, options)]
    assert yielded == [(0, False), (1, False), (2, False), (0, True), (1, True), (2, True)]
    assert rows == [3, 3]


def test_a_stopped_stream_gives_its_decoder_back_at_once(pipe, utt):
    """Not when garbage is collected: the next stream would build another decoder."""
    options = pipe.checkpoint.options.but(**SHORT, compute="exact", max_tokens=40)
    lm = pipe.models.fast_lm(options)
    gc.disable()
    try:
        for _ in range(2):
            for _ in wb.stream(pipe, utt, options):
                break
            assert len([one for one in lm._idle if one.key[0] == 1]) == 1
    finally:
        gc.enable()


def test_decoding_runs_no_further_ahead_than_the_next_chunk_of_any_stream(pipe, utt, monkeypatch):
    """The second stream starts with a hop of its own through a longer prompt."""
    asked = []
    lm_batch = type(pipe).lm_batch

    def watched(self, utts, options, wanted=None):
        for row, step in lm_batch(self, utts, options, wanted):
            asked.append(wanted())
            yield row, step

    monkeypatch.setattr(type(pipe), "lm_batch", watched)
    options = pipe.checkpoint.options.but(**SHORT, compute="exact", max_tokens=60)
    longer = replace(utt, flow_prompt_token=torch.cat((utt.flow_prompt_token, utt.flow_prompt_token[:5])))
    list(wb.stream_many(pipe, [utt, longer], options))
    # Pads to whole chunks differ by five tokens, and the sooner of the two counts.
    pads = [-len(one.flow_prompt_token) % pipe.config.chunk_size for one in (utt, longer)]
    assert asked[0] == pipe.config.chunk_size + min(pads) + pipe.config.flow.pre_lookahead_len


def test_a_row_that_ends_early_is_not_waited_for():
    """The others' later draws show that it has ended; its last chunk comes while they still draw."""
    from workbench.speech.models.lm import LMStep
    from workbench.speech.streaming.stream import _Draws

    lengths, drawn = (2, 6, 4), []

    def steps():
        for number in range(max(lengths)):
            for row, length in enumerate(lengths):
                if number < length:
                    drawn.append((row, number))
                    yield row, LMStep(number, 100 * row + number, None)

    draws = _Draws(steps(), len(lengths))
    rows = [draws.of_row(row) for row in range(3)]
    assert [next(rows[0]), next(rows[0]), next(rows[0], None)] == [0, 1, None]
    assert drawn[-1] == (1, 3)  # one token beyond the one that row 0 did not draw
    assert [list(row) for row in rows[1:]] == [[100, 101, 102, 103, 104, 105], [200, 201, 202, 203]]


@pytest.mark.slow
def test_a_later_pass_with_the_mask_leaves_whole_chunks_of_it_as_they_were(pipe, conversion):
    """What `notebooks/streaming.md` says that the flow could keep."""
    options = pipe.checkpoint.options.but(n_timesteps=2)
    prompt, chunk = len(conversion.flow_prompt_token), pipe.config.chunk_size
    lookahead = pipe.config.flow.pre_lookahead_len
    whole = -prompt % chunk + chunk  # tokens that fill the mask's chunks together with the prompt

    def mel(n):
        return pipe.mel(conversion, conversion.source_token[: n + lookahead], options, False, True)

    longest = mel(whole + 10)
    assert (longest[..., : 2 * whole] - mel(whole)).abs().max() < 1e-4
    part = mel(whole - 10)
    assert (longest[..., : part.shape[-1]] - part).abs().max() > 1e-2
