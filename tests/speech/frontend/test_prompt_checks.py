"""What `check_prompt` says of recordings and transcripts: nothing of clean ones, and the right word of each fault."""

import json
import time
import warnings

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

import workbench as wb
from tests.paths import ASSETS
from workbench.diagnose.compare.plausibility import inconsistent_lengths
from workbench.speech.frontend.audio_files import read_wav
from workbench.speech.frontend.prompt_checks import SOUND_KINDS, TRANSCRIPT_KINDS, read_transcript
from workbench.speech.frontend.transcript_checks import letters, spoken_letters, transcript_problems

pytestmark = pytest.mark.slow

PROMPTS = sorted(wb.data_path("prompts").glob("*.flac"))
KUMO = wb.data_path("prompts/kumo_0.flac")
RATE = 24_000
MARK = "<|endofprompt|>"


def speech(name="kumo_0"):
    return read_wav(wb.data_path(f"prompts/{name}.flac"))[0].double().numpy()


def transcript(name="kumo_0"):
    return wb.data_path(f"prompts/{name}.txt").read_text().strip()


def kinds(source, text=None, rate=None):
    return [finding.kind for finding in wb.check_prompt(source, text, rate)]


def noise(n, db):
    return np.random.default_rng(0).standard_normal(n) * 10 ** (db / 20)


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_clean_recordings_with_their_own_transcript_have_no_finding(path):
    found = wb.check_prompt(path)
    assert list(found) == [] and found.ok
    assert set(found.checked) == {*SOUND_KINDS, *TRANSCRIPT_KINDS}
    assert set(found.unchecked) == {"voices at once", "like voices", "room and music"}


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_clean_recordings_have_no_finding_at_other_rates(rate):
    for name in ("kumo_0", "tebukuro_1"):
        wav = resample_poly(speech(name), rate // 100, RATE // 100)
        assert kinds((wav, rate), transcript(name)) == []


def clipped(wav, share):
    limit = share * np.abs(wav).max()
    return np.clip(wav, -limit, limit)


def telephone(wav):
    return resample_poly(resample_poly(wav, 1, 3), 3, 1)


FAULTS = {
    "five seconds of silence before": (lambda w: np.r_[np.zeros(5 * RATE), w], "leading silence"),
    "two seconds of breath before": (lambda w: np.r_[noise(2 * RATE, -50), w], "leading silence"),
    "ten seconds of silence behind": (lambda w: np.r_[w, np.zeros(10 * RATE)], "trailing silence"),
    "room tone behind": (lambda w: np.r_[w, noise(3 * RATE, -60)], "trailing silence"),
    "a peak of -50 dB": (lambda w: w / np.abs(w).max() * 10 ** (-50 / 20), "level"),
    "beyond full scale": (lambda w: w / np.abs(w).max() * 1.3, "level"),
    "cut at a third": (lambda w: clipped(w, 0.35), "clipping"),
    "cut at a tenth": (lambda w: clipped(w, 0.1), "clipping"),
    "cut, then made quiet": (lambda w: 0.2 * clipped(w, 0.3), "clipping"),
    "cut, then resampled": (lambda w: resample_poly(resample_poly(clipped(w, 0.2), 2, 1), 1, 2), "clipping"),
    "offset": (lambda w: 0.8 * w + 0.05, "offset"),
    "negative offset": (lambda w: 0.8 * w - 0.02, "offset"),
    "telephone": (telephone, "bandwidth"),
    "noise at 5 dB": (lambda w: w + noise(len(w), 20 * np.log10(w.std()) - 5), "noise"),
    "two people in turn": (lambda w: np.r_[w, speech("alpha_0")], "two voices"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_a_recording_is_named(name):
    damage, kind = FAULTS[name]
    assert kinds((damage(speech()), RATE)) == [kind]


@pytest.mark.parametrize("rate", [8_000, 12_000])
def test_low_rates_are_told(rate):
    wav = resample_poly(speech(), rate // 1000, 24)
    [finding] = wb.check_prompt((wav, rate))
    assert finding.kind == "bandwidth" and "upstream refuses" in finding.message


def test_what_is_no_speech_is_told():
    for wav in (noise(3 * RATE, -20), 0.3 * np.sin(np.arange(3 * RATE) / 20)):
        found = wb.check_prompt((wav, RATE), "A tone.")
        assert [finding.kind for finding in found] == ["voice"]
        assert found.unchecked["noise"] == "no speech was found" and "transcript length" in found.unchecked


def test_one_voice_that_goes_on_is_one_voice():
    for name in ("kumo", "alpha", "nezumi", "tebukuro"):
        both = np.r_[speech(f"{name}_0"), speech(f"{name}_1")]
        assert kinds((both, RATE)) == []


@pytest.mark.parametrize(
    ("wav", "message"),
    [(np.zeros(RATE), "is silent"), (speech()[:5000], "lasts 0.21 s"), (np.tile(speech(), 6), "lasts 33.9")],
)
def test_a_recording_that_cannot_be_a_prompt_is_a_finding_and_nothing_else_is_checked(wav, message):
    found = wb.check_prompt((wav, RATE), "Hello.")
    [refused] = found
    assert refused.severity == "refused" and message in refused.message
    assert set(SOUND_KINDS) <= set(found.unchecked) and "transcript length" in found.unchecked
    with pytest.raises(wb.WorkbenchError, match=message):
        found.assert_ok()


# ---- transcripts

TEXTS = {
    "six times": (" ".join([transcript()] * 6), "transcript length"),
    "twice": (" ".join([transcript()] * 2), "transcript length"),
    "too short": ("Hi.", "transcript length"),
    "too short behind the mark": (f"You are a helpful assistant.{MARK}Hi.", "transcript length"),
    "instruction only": (f"You are a helpful assistant. Please speak slowly.{MARK}", "instruction"),
    "nothing behind the mark": (f"{MARK} ...", "instruction"),
    "no mark": (f"You are a helpful assistant. {transcript()}", "instruction"),
    "U+2039": (f"You are a helpful assistant.‹|endofprompt|> {transcript()}", "control tokens"),
    "spaces": (f"<| endofprompt |>{transcript()}", "control tokens"),
    "full width": (f"＜｜endofprompt｜＞{transcript()}", "control tokens"),
    "full-width bars": (f"<｜endofprompt｜>{transcript()}", "control tokens"),
    "no bars": (f"<endofprompt>{transcript()}", "control tokens"),
    "one bar": (f"<|endofprompt>{transcript()}", "control tokens"),
    "underscores": (f"<|end_of_prompt|>{transcript()}", "control tokens"),
    "capitals": (f"<|EndOfPrompt|>{transcript()}", "control tokens"),
    "escaped": (f"&lt;|endofprompt|&gt;{transcript()}", "control tokens"),
    "hidden character": (f"<|endof\u200bprompt|>{transcript()}", "control tokens"),
    "Cyrillic letter": (f"<|endоfprompt|>{transcript()}", "control tokens"),
    "typing error": (f"<|endofpromt|>{transcript()}", "control tokens"),
    "CosyVoice 1": (f"<|en|>{transcript()}", "control tokens"),
    "other breath": (f"<breath>{transcript()}", "control tokens"),
    "other laughter": (f"{transcript()} [Laughter]", "control tokens"),
    "replacement character": (f"{transcript()} \ufffd", "characters"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_each_fault_of_a_transcript_is_named(name):
    text, kind = TEXTS[name]
    found = wb.check_prompt(KUMO, text)
    assert kind in [finding.kind for finding in found] and not found.ok


def test_the_token_that_was_meant_is_named():
    found = wb.check_prompt(KUMO, f"‹|endofprompt|> {transcript()}")
    [message] = [finding.message for finding in found if finding.kind == "control tokens"]
    assert "for <|endofprompt|>?" in message


@pytest.mark.parametrize(
    "text",
    [
        f"You are a helpful assistant.{MARK}{transcript()}",
        f"[breath]{transcript()} <strong>indeed</strong> <laughter>yes</laughter>",
        f"{transcript()} [AY0][M]",
        f"{transcript()} a < b, c > d | e [sic] <b>bold</b> «accent» {{x}}",
        f"\ufeff{transcript()}",
    ],
)
def test_real_control_tokens_and_other_brackets_are_no_finding(text):
    assert kinds(KUMO, text) == []


def test_letters_stand_for_time_in_every_script():
    assert (
        letters("It is late.") == 8
        and letters("你好。") == 6
        and letters("안녕") == 6
        and letters("こん") == 4
    )
    assert spoken_letters(f"Slowly.{MARK}It is [breath][AY0] late.") == 9
    assert spoken_letters("1995") == 20


@pytest.mark.parametrize(
    "text",
    [
        "他决定暂时和窃贼们合作。我觉得他画得很差。",
        "Он решил пока подыграть грабителям. Думаю, он пишет плохо.",
    ],
)
def test_transcripts_of_other_scripts_are_measured_by_their_own_letters(text):
    assert kinds(KUMO, text) == []
    assert "transcript length" in kinds(KUMO, text * 4) and "transcript length" in kinds(KUMO, text[:5])


@pytest.mark.parametrize(
    "text", ["<" + " " * 100_000, "<a" + " " * 100_000, "[" * 100_000, "speak " * 20_000, "!" * 100_000]
)
def test_no_text_takes_long(text):
    start = time.perf_counter()
    list(transcript_problems(text))
    assert time.perf_counter() - start < 5  # quadratic searches take minutes


@pytest.mark.parametrize("level", [0.5, -1.0])
def test_a_constant_is_no_speech(level):
    assert kinds((np.full(RATE, level), RATE)) == ["voice", "level", "offset"]


# ---- where findings are kept


def test_findings_warn_and_go_into_utterances_and_traces(pipe):
    quiet = (speech() / 200, RATE)
    with pytest.warns(wb.WorkbenchWarning, match="loud speech has -6"):
        prompt = pipe.prompt(quiet, transcript())
    assert [finding.kind for finding in prompt.findings] == ["level"]
    utt = pipe.prepare("It is late, and he will play along for the moment, as I think.", prompt)
    assert utt.warnings == (prompt.findings[0].message,)
    trace = pipe.synthesise(utt, options=pipe.checkpoint.options.but(max_tokens=5, n_timesteps=1))
    assert trace.attrs["warnings"] == list(utt.warnings)
    again = pipe.replay(trace, "flow")
    assert again.attrs["warnings"] == trace.attrs["warnings"]


def test_the_report_keeps_them(pipe):
    said = {"warnings": ["the transcript is far longer than the recording"]}
    trace = wb.Trace({"lm/speech_token": torch.tensor([1, 2])}, said)
    assert "Before the run: the transcript is far longer" in wb.run_report(trace).lead


def test_the_transcript_matters_in_zero_shot_alone(pipe):
    with pytest.warns(wb.WorkbenchWarning, match="far shorter"):
        prompt = pipe.prompt(KUMO, "Hi.")
    assert "far shorter" in pipe.prepare("It is late.", prompt).warnings[0]
    assert pipe.prepare("It is late.", prompt, mode="cross-lingual").warnings == ()


def test_a_text_much_shorter_than_the_transcript_is_noted_as_upstream_does(pipe):
    prompt = pipe.prompt(KUMO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a note is no warning: upstream's is common
        utt = pipe.prepare("It is late.", prompt)
    [note] = utt.warnings
    assert "11 characters, less than half" in note and f"({len(prompt.text)})" in note
    assert pipe.prepare("x" * (len(prompt.text) // 2), prompt).warnings == ()


@pytest.mark.parametrize(
    ("text", "mode", "instruct", "message"),
    [
        ("‹|endofprompt|> It is late, and nobody knows why that should be so.", "zero-shot", None, "is none"),
        (
            f"Slowly.{MARK}It is late, and nobody knows why that should be so.",
            "zero-shot",
            None,
            "expected it once",
        ),
        ("It is late.", "instruct", "Slowly.‹|endofprompt|>", "the instruction holds"),
        ("It is late.", "instruct", f"Slowly.{MARK} And more.", "'And more.' stands behind"),
    ],
)
def test_texts_and_instructions_are_checked_too(pipe, text, mode, instruct, message):
    prompt = pipe.prompt(KUMO)
    with pytest.warns(wb.WorkbenchWarning, match=message):
        utt = pipe.prepare(text, prompt, mode, instruct)
    assert any(message in warning for warning in utt.warnings)


def test_the_system_prompt_is_not_put_before_itself(pipe):
    utt = pipe.prepare("It is late.", KUMO, "instruct", "You are a helpful assistant. Slowly.")
    read = pipe.frontend.tokenizer.decode(utt.prompt_text_token)
    assert read == f"You are a helpful assistant. Slowly.{MARK}"


# ---- transcripts of every encoding


def test_transcripts_in_utf8_and_utf16_are_read_without_their_mark(tmp_path):
    for name in ("bom", "utf16"):
        (tmp_path / f"{name}.txt").write_bytes((ASSETS / "prompts" / f"{name}.txt").read_bytes())
        assert read_transcript(tmp_path / f"{name}.flac").strip() == transcript()
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"):
        (tmp_path / "a.txt").write_bytes(transcript().encode(encoding))
        assert read_transcript(tmp_path / "a.wav") == transcript()
    assert read_transcript(tmp_path / "none.wav") is None


@pytest.mark.parametrize(
    "content",
    [(ASSETS / "prompts" / "gbk.txt").read_bytes(), "Grüße".encode("latin-1"), b"a\0b", b"\xff\xfea"],
)
def test_other_encodings_are_one_sentence_that_names_the_file(pipe, tmp_path, content):
    path = tmp_path / "k.txt"
    path.write_bytes(content)
    for use in (lambda: pipe.prompt(tmp_path / "k.flac"), lambda: wb.check_prompt(tmp_path / "k.flac")):
        (tmp_path / "k.flac").write_bytes(KUMO.read_bytes())
        with pytest.raises(wb.WorkbenchError, match=r"k\.txt") as caught:
            use()
        assert "UTF-8" in str(caught.value) and "\n" not in str(caught.value)


def test_a_huge_text_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.files.MAX_TEXT_BYTES", 10)
    (tmp_path / "a.txt").write_text("x" * 11)
    with pytest.raises(wb.WorkbenchError, match=r"a\.txt is larger than"):
        read_transcript(tmp_path / "a.wav")


# ---- the result


def test_the_result_is_a_table_json_and_html():
    found = wb.check_prompt(KUMO, f"‹|endofprompt|><b>{transcript()}")
    assert "control tokens; 13 kinds checked" in repr(found) and len(found) == 1
    assert found.to_frame()["kind"].tolist() == ["control tokens"]
    held = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert held["findings"][0]["kind"] == "control tokens" and held["measures"]["rate_hz"] == RATE
    assert "<b>‹" not in found._repr_html_()
    without = wb.check_prompt((speech(), RATE))
    assert without.unchecked["transcript length"] == "no transcript"


# ---- conversion


def test_conversion_keeps_the_untrimmed_prompt_on_request(pipe):
    """Upstream's `frontend_vc` gives 142 tokens and 282 frames for kumo_0, 140 and 279 for alpha_0."""
    for name, n_tokens, n_frames in (("kumo_0", 142, 282), ("alpha_0", 140, 279)):
        path = wb.data_path(f"prompts/{name}.flac")
        whole, cut = pipe.convert(path, path, trim=False), pipe.convert(path, path)
        assert (len(whole.flow_prompt_token), whole.prompt_mel.shape[-1]) == (n_tokens, n_frames)
        n = n_frames // 2
        assert (len(cut.flow_prompt_token), cut.prompt_mel.shape[-1]) == (n, 2 * n)
        assert torch.equal(whole.flow_prompt_token[:n], cut.flow_prompt_token)
        assert torch.equal(whole.prompt_mel[..., : 2 * n], cut.prompt_mel)


@pytest.mark.slow
def test_an_untrimmed_conversion_is_a_consistent_run(pipe):
    utt = pipe.convert(wb.data_path("prompts/kumo_1.flac"), KUMO, trim=False)
    trace = pipe.synthesise(utt, options=pipe.checkpoint.options.but(n_timesteps=1))
    assert trace["flow/mel"].shape[1] == 2 * len(utt.source_token) + 2  # as upstream's, 2 frames more
    assert inconsistent_lengths(trace) == []
    other = wb.Trace(dict(trace), {k: v for k, v in trace.attrs.items() if k != "mode"})
    del other.data["in/source_token"]
    assert inconsistent_lengths(other)


def test_a_prompt_may_be_an_array_with_its_rate(pipe):
    samples = np.round(speech() * 32768).astype(np.int16)
    from_array = pipe.prompt((samples, RATE), transcript())
    from_file = pipe.prompt(KUMO)
    assert torch.equal(from_array.speech_token, from_file.speech_token)
    assert from_array.sha256 == from_file.sha256
    assert (
        pipe.prepare("It is late.", (samples[:, None], 24_000.0), mode="cross-lingual").text == "It is late."
    )
    assert torch.equal(
        pipe.convert(samples, from_file, RATE).source_token, pipe.convert(KUMO, KUMO).source_token
    )
