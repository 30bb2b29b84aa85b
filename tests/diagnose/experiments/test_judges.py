"""Judges of a sound: which words count, what is told where nobody can judge, and the real libraries."""

import pickle
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.diagnose.experiments.judges import hear, words_of
from workbench.diagnose.experiments.metric_key import metric_key
from workbench.speech.frontend.audio_input import open_audio

RATE = 24_000
TONE = (0.1 * np.sin(np.arange(RATE) / 20)).astype(np.float32)


def says(text):
    return lambda wav, rate: text


# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Well-known: it’s 8 p.m. [breath]", ["well", "known", "it's", "eight", "pm"]),
        ("Mr. Smith paid $5.", ["mister", "smith", "paid", "five", "dollars"]),
        ("'Quoted' <strong>words</strong><|en|>", ["quoted", "words"]),
        ("Speak softly.<|endofprompt|>Guten Morgen", ["guten", "morgen"]),
        ("我有8个GPU。", ["我", "有", "八", "个", "gpu"]),
        ("これは８個", ["こ", "れ", "は", "8", "個"]),
        ("ดีมาก", ["ด", "ี", "ม", "า", "ก"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("Straße ÉTÉ e\u0301te\u0301", ["strasse", "été", "été"]),
        ("...", []),
        ("", []),
    ],
)
def test_words_are_compared_without_case_signs_and_tokens(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("said", "heard", "wrong", "words"),
    [
        ("Eight months to Mars.", "8 months to mars", 0, 4),
        ("Eight months to Mars.", "ate months to Mars again", 2, 4),
        ("Eight months to Mars.", "", 4, 4),
        ("Go.", "no no no", 3, 1),
        ("你好世界", "你好，是界！", 1, 4),
        ("Ich habe 8 Hunde.", "ich habe 8 Hunde", 0, 4),
        ("Er hat 8.", "8", 2, 3),  # what is heard is not read in another language
    ],
)
def test_wrong_words_are_those_replaced_left_out_and_added(said, heard, wrong, words):
    found = hear((TONE, RATE), said, judge=says(heard))
    assert found == (wrong, words, heard)
    assert wb.metrics.wer((TONE, RATE), said, judge=says(heard)) == wrong / words


def test_a_judge_gets_the_samples_and_rate_of_a_trace_with_its_text():
    trace = wb.Trace({"hift/wav": torch.from_numpy(TONE)}, {"text": "Eight months.", "sample_rate": 22_050})
    got = []

    def judge(wav, rate):
        got.append((wav, rate))
        return "eight months"

    assert wb.metrics.wer(trace, judge=judge) == 0
    assert wb.metrics.wer(wb.Trace(trace.data, {}), trace, judge=judge) == 0  # the text of a reference
    wav, rate = got[0]
    assert rate == 22_050 and wav.dtype == np.float32 and np.array_equal(wav, TONE)


# What nobody can judge


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        ((TONE[:1000], RATE), "lasts 0.042 s; expected 0.1 s"),
        ((0 * TONE, RATE), "is silent"),
        ((np.where(np.arange(RATE) == 7, np.nan, TONE), RATE), "NaN or infinite"),
        ((20_000 * TONE, RATE), "divide by full scale"),
        (TONE, "without a rate"),
        (wb.Trace({"flow/mel": torch.zeros(80, 50)}, {"text": "a"}), "no waveform"),
        (wb.Trace({"hift/wav": torch.zeros(0)}, {"text": "a"}), "lasts 0.000 s"),
        ("none.wav", "none.wav"),
        (None, "which is no sound"),
    ],
)
@pytest.mark.parametrize("metric", ["wer", "dnsmos"])
def test_a_sound_that_nobody_can_judge_is_told(sound, message, metric):
    more = {"text": "a", "judge": says("a")} if metric == "wer" else {}
    with pytest.raises(wb.WorkbenchError, match=message):
        getattr(wb.metrics, metric)(sound, **more)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no text is known"), ("?!", "the text is '\\?!'"), (["Good", "morning"], "text is a list")],
)
def test_a_missing_text_is_told(text, message):
    with pytest.raises(wb.WorkbenchError, match=message):
        wb.metrics.wer((TONE, RATE), text, judge=says("a"))


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (5, "judge is a int"),
        (None, "judge is a NoneType"),
        (says(None), "returned a NoneType"),
        (lambda wav: "a", "the judge raised TypeError"),
        (lambda wav, rate: 1 / 0, "raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_judge_that_fails_is_told(judge, message):
    with pytest.raises(wb.WorkbenchError, match=message):
        wb.metrics.wer((TONE, RATE), "a", judge=judge)


@pytest.mark.parametrize(
    ("library", "judge_it"),
    [
        ("jiwer", lambda: wb.metrics.wer((TONE, RATE), "a", judge=says("a"))),
        ("faster_whisper", lambda: wb.metrics.Whisper("a-model")(TONE, RATE)),
        ("speechmos.dnsmos", lambda: wb.metrics.dnsmos((TONE, RATE))),
    ],
)
def test_a_missing_library_is_told_with_its_installation(library, judge_it, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(wb.WorkbenchError, match=r"pip install 'cosyvoice-workbench\[judges\]'"):
        judge_it()


# As metrics of an experiment


def test_an_experiment_takes_a_judge_with_its_model(pipe, utt, tmp_path):
    metrics = {
        "right": partial(wb.metrics.wer, judge=says("Eight months to Mars")),
        "half": partial(wb.metrics.wer, judge=says("Eight months")),
    }
    variants = {name: {"max_tokens": n, "n_timesteps": 1} for name, n in (("own", 8), ("shorter", 6))}
    utt = replace(utt, text="Eight months to Mars.")
    table = wb.Experiment(pipe, {"mars": utt}, variants, "own", metrics, folder=tmp_path).run()
    assert table["right"].tolist() == [0, 0] and table["half"].tolist() == [0.5, 0.5]
    assert set(table["error"]) == {""}


def test_workers_and_caches_tell_judges_apart():
    one, other = (partial(wb.metrics.wer, judge=wb.metrics.Whisper(name)) for name in ("a", "b"))
    assert metric_key(one) == metric_key(pickle.loads(pickle.dumps(one))) != metric_key(other)
    assert metric_key(wb.metrics.dnsmos) == metric_key(pickle.loads(pickle.dumps(wb.metrics.dnsmos)))


# The libraries themselves


@pytest.fixture(scope="module")
def random_whisper(tmp_path_factory):
    pytest.importorskip("faster_whisper")
    from tests.diagnose.experiments.random_whisper import write_random_whisper

    return write_random_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.mark.slow
def test_whisper_is_loaded_from_a_folder_and_hears_the_same_twice(random_whisper):
    judge = wb.metrics.Whisper(random_whisper)
    heard = judge(TONE, RATE)
    assert isinstance(heard, str) and heard and judge(TONE, RATE) == heard
    by_folder = hear((TONE, RATE), "Good morning.", judge=str(random_whisper))
    assert by_folder.text == heard and by_folder.words == 2


@pytest.mark.slow
def test_a_model_that_is_not_there_is_told_and_not_downloaded(random_whisper, tmp_path):
    with pytest.raises(
        wb.WorkbenchError, match=r"is no folder and no Whisper model \(tiny.en, .*download_model"
    ):
        wb.metrics.Whisper("whisper-huge")(TONE, RATE)
    with pytest.raises(wb.WorkbenchError, match=r"'large-v1' is not on this machine.*download_model"):
        wb.metrics.Whisper("large-v1")(TONE, RATE)
    for name in ("model.bin", "config.json"):
        (tmp_path / name).write_bytes((random_whisper / name).read_bytes()[:100])
    with pytest.raises(wb.WorkbenchError, match=r"has no tokenizer.json"):
        wb.metrics.Whisper(tmp_path)(TONE, RATE)
    (tmp_path / "tokenizer.json").write_bytes((random_whisper / "tokenizer.json").read_bytes())
    with pytest.raises(wb.WorkbenchError, match="cannot be opened on cpu"):
        wb.metrics.Whisper(tmp_path)(TONE, RATE)


@pytest.mark.slow
def test_dnsmos_prefers_clean_speech():
    pytest.importorskip("speechmos")
    path = wb.data_path("prompts/kumo_0.flac")
    wav, rate, *_ = open_audio(path)
    clean = wb.metrics.dnsmos(path)
    noise = torch.randn(wav.shape, generator=torch.Generator().manual_seed(0))
    noisy = wb.metrics.dnsmos((wav + 0.05 * noise, rate))
    assert 2.5 < clean < 5 and 1 <= noisy < clean - 0.5
    assert wb.metrics.dnsmos((1.3 * wav / wav.abs().max(), rate)) > 1  # clipped, not refused
