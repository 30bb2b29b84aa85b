"""Runs of text that arrives as a stream, of text by upstream's front end, and what their traces say."""

import pytest
import torch

import workbench as wb
from tests.paths import ROOT
from workbench.errors import WorkbenchError
from workbench.speech.models import lm_bistream

pytestmark = pytest.mark.slow

PROMPT = ROOT / "data" / "prompts" / "kumo_1.flac"
PIECES = ("Eight months ", "to Mars, and ", "fourteen more ", "to Saturn.")


@pytest.fixture
def any_voice(monkeypatch):
    """Let the bundled voice read a stream, for which it was not trained; its speech is not looked at."""
    monkeypatch.setattr(lm_bistream, "MIN_FILL_PROBABILITY", 0.0)


def test_a_voice_that_was_not_trained_for_streams_says_so(pipe):
    given = []

    def pieces():
        for piece in PIECES * 20:
            given.append(piece)
            yield piece

    utt = pipe.prepare(pieces(), PROMPT)
    assert not given and len(utt.text_token) == 0
    with pytest.raises(WorkbenchError, match="was not trained on text that arrives as a stream"):
        list(wb.stream(pipe, utt))
    assert 0 < len(given) < 80  # it is found in the first turn
    with pytest.raises(WorkbenchError, match="not trained on streamed text"):
        pipe.synthesise(utt, options=pipe.checkpoint.options.but(mask_stop_ids=False), stop_after="lm")


@pytest.mark.parametrize("mode", ["zero-shot", "cross-lingual", "instruct"])
def test_a_streamed_text_is_recorded_and_spoken_again(pipe, any_voice, mode):
    instruct = "Softly." if mode == "instruct" else None
    utt = pipe.prepare(iter(PIECES), PROMPT, mode, instruct)
    options = pipe.checkpoint.options.but(seed=7, max_tokens=40)
    trace = pipe.synthesise(utt, options=options, save="lm/*", stop_after="lm")
    ids = [i for piece in PIECES for i in pipe.frontend.tokenizer.encode(piece)]
    assert trace["in/text_token"].tolist() == ids and trace.attrs["text"] == "".join(PIECES)
    assert (
        trace.attrs["text_stream"] and trace.attrs["frontend"] == "off" and utt.normalised == "".join(PIECES)
    )
    again = pipe.replay(trace, "lm", save="lm/*", stop_after="lm")
    assert torch.equal(again["lm/drawn_token"], trace["lm/drawn_token"])
    assert torch.equal(again["in/text_token"], trace["in/text_token"])


@pytest.mark.slow
def test_a_streamed_text_becomes_sound_while_it_arrives(pipe, any_voice):
    options = pipe.checkpoint.options.but(seed=7, n_timesteps=1, max_tokens=30)
    [utt] = pipe.prepare_all(iter(PIECES), PROMPT)
    trace = wb.streamed(pipe, utt, options)
    assert trace.seconds > 0.5 and trace.attrs["text"] == "".join(PIECES)
    whole = pipe.synthesise(pipe.prepare("".join(PIECES), PROMPT), options=options, save="lm/*")
    own = pipe.synthesise(utt, options=options, save="lm/*")
    comparison = wb.compare(own, own, pipe)
    assert "turns of the streamed text" in str(comparison.unchecked["lm/logp"])
    assert not wb.compare(whole, whole, pipe).unchecked.get("lm/logp")


def test_streamed_text_needs_the_eager_lm(pipe):
    with pytest.raises(WorkbenchError, match="compute='eager'"):
        pipe.synthesise(pipe.prepare(["Hm."], PROMPT), options=pipe.checkpoint.options.but(compute="exact"))


def test_the_trace_says_which_front_end_read_the_text(pipe):
    options = pipe.checkpoint.options.but(max_tokens=2)
    typed = "It costs $5."
    for frontend, said in (
        ("workbench", "It costs five dollars."),
        ("upstream", "It costs five dollars."),
        ("off", typed),
    ):
        utt = pipe.prepare(typed, PROMPT, frontend=frontend)
        assert utt.normalised == utt.text == said and utt.typed == typed and utt.frontend == frontend
        attrs = pipe.synthesise(utt, options=options, stop_after="lm").attrs
        assert (attrs["text"], attrs["typed"], attrs["frontend"]) == (said, typed, frontend)
    [[batched]] = pipe.synthesise_many([utt], [options.but(n_timesteps=1)])
    assert batched.attrs["frontend"] == "off"


def test_upstreams_segments_are_the_ids_of_the_models(pipe):
    text = "Wait... what?! " + "Nobody on the long pier knows the ship, or where it goes. " * 4
    utts = pipe.prepare_all(text, PROMPT, frontend="upstream")
    assert len(utts) > 1 and utts[1].text.startswith(" Nobody")
    for utt in utts:
        assert utt.text_token.tolist() == pipe.frontend.tokenizer.encode(utt.text)
    assert pipe.prepare(text, PROMPT, frontend="upstream").text == "".join(utt.text for utt in utts)


def test_what_upstream_cannot_read_is_spoken_with_a_warning(pipe):
    with pytest.warns(wb.WorkbenchWarning, match="raises AssertionError"):
        utt = pipe.prepare("It is §5.", PROMPT, frontend="upstream")
    assert utt.frontend == "workbench" and "raises AssertionError" in utt.warnings[0]
    trace = pipe.synthesise(utt, options=pipe.checkpoint.options.but(max_tokens=2), stop_after="lm")
    assert trace.attrs["warnings"] == list(utt.warnings)


def test_another_script_is_refused_but_for_upstreams_ids(pipe):
    with pytest.raises(WorkbenchError, match="written in CJK"):
        pipe.prepare("你好。", PROMPT)
    for frontend in ("upstream", "off"):
        with pytest.warns(wb.WorkbenchWarning, match="written in CJK"):
            utt = pipe.prepare("你好。", PROMPT, frontend=frontend)
        assert utt.text_token.tolist() == pipe.frontend.tokenizer.encode("你好。")
        assert "CJK" in utt.warnings[0]


def test_a_language_keeps_its_digits(pipe):
    assert pipe.prepare("Kapitel 7.", PROMPT, language="de").text == "Kapitel 7."
