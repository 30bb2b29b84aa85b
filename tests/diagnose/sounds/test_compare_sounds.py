"""What `compare_sounds` says of copies, of known changes, of other utterances and of broken files."""

import itertools
import json

import numpy as np
import pytest
import torch

import workbench as wb
from tests.diagnose.sounds.common import (
    VOICES,
    at_rate,
    delayed,
    dithered,
    drifted,
    noisy,
    pcm16,
    speech,
    written,
)

RATES = (8000, 16_000, 22_050, 44_100, 48_000)
pytestmark = pytest.mark.slow


def compared(x, y, rate=24_000):
    return wb.compare_sounds(x, y, rate)


# ---- copies are the same


COPIES = {
    "equal": (lambda x: x, "MATCH"),
    "16 bit": (pcm16, "ROUNDING"),
    "16 bit with dither": (dithered, "ROUNDING"),
    "float16": (lambda x: x.astype(np.float16), "ROUNDING"),
    "quieter": (lambda x: x / 2, "MATCH"),
    "much quieter, 16 bit": (lambda x: pcm16(x / 30), "ROUNDING"),
    "inverted": (lambda x: -x, "MATCH"),
    "later": (lambda x: delayed(x, 480), "MATCH"),
    "later by a fraction, 16 bit": (lambda x: pcm16(delayed(x, 7.3)), "ALIKE"),
    "drifting": (lambda x: drifted(x, 50), "ALIKE"),
    "with an offset": (lambda x: x + 0.01, "MATCH"),
    "with silence behind": (lambda x: np.pad(x, (0, 24_000)), "MATCH"),
}


@pytest.mark.parametrize(("name", "voice"), list(zip(COPIES, itertools.cycle(VOICES), strict=False)))
def test_a_copy_is_never_called_different(name, voice):
    change, verdict = COPIES[name]
    wav = 0.9371 * speech(f"{voice}_0")  # so that its values are those of no 16-bit file
    found = compared(wav, change(wav))
    assert found.verdict == verdict or (verdict, found.verdict) == ("MATCH", "ROUNDING"), found.line
    assert not [each for each in found.aspects if each.differs and not each.is_undone]
    found.assert_ok()


@pytest.mark.parametrize(("voice", "rate"), list(zip(VOICES, RATES, strict=True)))
def test_a_copy_at_another_rate_is_alike(voice, rate, tmp_path):
    wav = speech(f"{voice}_1")
    other = written(tmp_path / "other.wav", pcm16(at_rate(wav, 24_000, rate)), rate, "PCM_16")
    found = wb.compare_sounds(written(tmp_path / "own.wav", wav), other)
    assert found.verdict == "ALIKE" and found.differing == ["sample rate"], found.line


def test_quiet_16_bit_file_is_not_taken_for_half_precision():
    wav = 0.02 * speech("alpha_0")
    found = compared(wav, pcm16(wav))
    assert found.verdict == "ROUNDING" and found.properties.loc["storage", "candidate"] == "16 bit"


def test_stereo_copy_is_the_same(tmp_path):
    wav = pcm16(speech("nezumi_0"))
    both = written(tmp_path / "both.flac", np.stack([wav, wav], 1), subtype="PCM_16")
    found = wb.compare_sounds(written(tmp_path / "one.wav", wav), both)
    assert found.verdict == "MATCH" and list(found.properties.loc["channels"]) == [1, 2]


# ---- known changes are named


def test_level_polarity_and_delay_are_told_in_one_line():
    wav = speech("kumo_1")
    found = compared(wav, -0.5 * delayed(wav, 240))
    assert found.differing == ["delay", "polarity", "level"]
    assert "10 ms later" in found.line and "-6.02 dB" in found.line and "inverted" in found.line


@pytest.mark.parametrize(("voice", "rate"), list(zip(VOICES, itertools.cycle((8000, 16_000)), strict=False)))
def test_lost_bandwidth_is_found_and_nothing_else(voice, rate):
    wav = speech(f"{voice}_0")
    found = compared(wav, at_rate(at_rate(wav, 24_000, rate), rate, 24_000)[: len(wav)])
    assert found.verdict == "DIVERGED" and found.differing[0] == "bandwidth", found.line
    assert set(found.differing) <= {"bandwidth", "spectrum"}  # a soft filter changes the last band
    lost_from = float(next(each for each in found.aspects if each.name == "bandwidth").text.split()[1]) * 1000
    assert 0.7 * rate / 2 <= lost_from <= 1.02 * rate / 2


@pytest.mark.parametrize(
    ("voice", "true", "label"),
    [("kumo", 24_000, 22_050), ("alpha", 24_000, 48_000), ("nezumi", 22_050, 16_000)],
)
def test_wrong_rate_in_a_header_is_named(voice, true, label, tmp_path):
    wav = speech(f"{voice}_0", true)
    own = written(tmp_path / "own.wav", wav, true)
    found = wb.compare_sounds(own, written(tmp_path / "wrong.wav", wav, label))
    assert found.verdict == "MATCH" and found.differing == ["sample rate"]
    assert f"fit {true} Hz, but are labelled {label} Hz" in found.line


def test_missing_end_is_a_difference_in_length():
    wav = speech("gongitsune_0")
    found = compared(wav, wav[: len(wav) // 2])
    assert found.verdict == "DIVERGED" and found.differing == ["length"]
    assert "of sound after the part in common" in found.line or any(
        "of sound after" in r for r in found.remarks
    )


def test_noise_raises_the_noise_floor():
    for voice in VOICES[2:]:
        wav = np.pad(speech(f"{voice}_1"), (12_000, 0))  # a pause in which the noise is heard
        found = compared(wav, noisy(wav, 25))
        assert found.verdict == "DIVERGED" and "noise floor" in found.differing
        assert found.snr_db == pytest.approx(25, abs=1)


def test_clipping_is_named():
    wav = speech("alpha_1") / np.abs(speech("alpha_1")).max()
    found = compared(0.5 * wav, np.clip(2 * wav, -1, 1))
    assert "clipping" in found.differing and found.verdict == "DIVERGED"
    assert "level" in found.differing


def test_other_pitch_is_a_difference_in_f0():
    """A speed change of 1 % over a short sound keeps the spectrogram aligned and raises the pitch by 17 cents."""
    for voice in ("alpha", "tebukuro"):
        wav = speech(f"{voice}_0", seconds=1.5)
        found = compared(wav, drifted(wav, -10_000))
        assert not found.ok and "f0" in found.differing, found.line


def test_nan_is_named_and_the_rest_is_compared():
    wav = speech("kumo_0").copy()
    broken = wav.copy()
    broken[1000:1010] = np.nan
    found = compared(wav, broken)
    assert found.verdict == "DIVERGED" and "not finite" in found.differing
    assert "0 and 10 samples" in "".join(found.remarks)


# ---- runs of the model


@pytest.fixture(scope="module")
def runs(pipe, recorded):
    """Sounds of one mel, or of the same tokens: {what was changed: trace}."""
    options = pipe.checkpoint.options
    return {
        "vocoder in float16": pipe.replay(recorded, "hift", options.but(hift_dtype="float16")),
        "guidance off": pipe.replay(recorded, "flow", options.but(cfg_rate=0.0)),
        "one step": pipe.replay(recorded, "flow", options.but(n_timesteps=1)),
    }


def test_vocoder_in_half_precision_is_a_small_difference_at_most(runs, recorded):
    found = wb.compare_sounds(recorded, runs["vocoder in float16"])
    assert found.snr_db > 25 and {"spectrum", "f0", "prosody", "words"}.isdisjoint(found.differing)
    assert "small difference" in "".join(found.remarks) or found.differing == ["phase or noise"]


@pytest.mark.parametrize("name", ["guidance off", "one step"])
def test_faults_of_the_flow_change_the_spectrum_and_not_the_words(runs, recorded, name):
    found = wb.compare_sounds(recorded, runs[name])
    assert found.verdict == "DIVERGED" and "spectrum" in found.differing, found.line
    assert {"words", "delay"}.isdisjoint(found.differing)


def test_no_catalogued_fault_is_named(runs, recorded):
    names = [fault.name for fault in wb.faults.CATALOGUE]
    for run in runs.values():
        text = json.dumps(wb.compare_sounds(recorded, run).to_dict())
        assert not [name for name in names if name in text]


# ---- what cannot be compared


def test_other_words_are_not_aligned():
    for one, other in (("kumo_0", "kumo_1"), ("alpha_0", "nezumi_0"), ("tebukuro_1", "tebukuro_0")):
        found = compared(speech(one), speech(other))
        assert found.verdict == "NOT ALIGNED" and "not the same utterance" in found.line


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(24_000), "is silent"),
        (np.full(24_000, 0.1), "is silent"),
        (np.full(24_000, np.nan), "every sample of the candidate is NaN"),
        (np.array([0.5]), "1 samples"),
        (np.zeros(200), "8.33 ms"),
    ],
)
def test_what_has_nothing_to_compare_is_said_so(samples, words):
    found = compared(speech("kumo_0"), samples)
    assert found.verdict == "NOT COMPARABLE" and words in found.line and not found.ok
    assert compared(samples, samples).verdict == "MATCH"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (torch.zeros(20, 100), "one recording"),
        (torch.zeros(0), "not empty"),
        (wb.Trace({}, {}), "no waveform"),
        (3, "is no sound"),
        (torch.zeros(24_000 * 61), "60 s at most at this rate"),
    ],
)
def test_what_is_no_sound_is_an_error(source, words):
    with pytest.raises(wb.WorkbenchError, match=words):
        compared(speech("kumo_0"), source)


def test_samples_need_a_rate():
    with pytest.raises(wb.WorkbenchError, match="without a rate; pass sample_rate"):
        wb.compare_sounds(speech("kumo_0"), speech("kumo_0"))


def test_files_that_hold_nothing_are_errors(tmp_path):
    empty, bare = tmp_path / "empty.wav", tmp_path / "bare.wav"
    empty.touch()
    written(bare, np.zeros(0))
    for path, words in ((empty, "0 bytes"), (bare, "no samples"), (tmp_path / "none.wav", "does not exist")):
        with pytest.raises(wb.WorkbenchError, match=words):
            wb.compare_sounds(str(path), str(path))


def test_compare_of_traces_sends_sounds_on(tmp_path):
    path = written(tmp_path / "a.wav", speech("kumo_0"))
    with pytest.raises(wb.WorkbenchError, match="compare_sounds"):
        wb.compare(path, path)


# ---- the result


def test_result_shows_itself_as_text_table_html_and_json():
    wav = speech("kumo_0")
    found = compared(wav, noisy(wav, 20))
    assert set(found.to_frame()["differs"]) <= {"yes", "no", "undone", "not measured"}
    assert found.bands["high_hz"].iloc[-1] == 12_000 and len(found.times) == 25
    html = found._repr_html_()
    assert "noise floor" in html and "<script" not in html
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert said["verdict"] == "DIVERGED" and said["unknown"] and len(said["times"]) == 25
    assert "cannot tell which fault" in " ".join(found.remarks)
