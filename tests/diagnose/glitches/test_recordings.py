"""Recordings of people: other rates and voices raise no alarm, and their properties are not called defects."""

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import butter, lfilter, sosfilt

from workbench import Trace, WorkbenchError, find_glitches
from workbench.diagnose.glitches.analysis import as_sound
from workbench.diagnose.glitches.defects import inject
from workbench.diagnose.glitches.glitches import detect
from workbench.diagnose.glitches.pitch import frames_at_pitch, voiced_frames
from workbench.files import data_path
from workbench.speech.frontend.audio import resample
from workbench.trace.schema import SAMPLE_RATE

PROMPTS = sorted(data_path("prompts").glob("*_0.flac"))
CUT = {"offset", "start cut", "stop cut"}


def speech(name="kumo_0"):
    wav, _ = soundfile.read(data_path(f"prompts/{name}.flac"), dtype="float32")
    return torch.from_numpy(wav)


def vowel(hz, rate, seconds=2.0):
    """Pulses through three formants, with a little noise and a slow vibrato."""
    n = int(seconds * rate)
    phase = np.cumsum(hz * (1 + 0.01 * np.sin(2 * np.pi * 5 * np.arange(n) / rate)) / rate)
    x = np.diff(np.floor(phase), prepend=0.0)
    for formant, width in ((700, 90), (1200, 110), (2600, 160)):
        radius = np.exp(-np.pi * width / rate)
        x = lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * formant / rate), radius**2], x)
    x += 0.01 * x.std() * np.random.default_rng(0).standard_normal(n)
    return torch.from_numpy(0.3 * x / np.abs(x).max()).float()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_nothing_is_found_in_clean_speech_at_other_rates(rate):
    for path in PROMPTS[:3]:
        wav, own = soundfile.read(path, dtype="float32")
        found = find_glitches(resample(torch.from_numpy(wav), own, rate), rate)
        assert not len(found), (path.stem, found)


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000])
@pytest.mark.parametrize("hz", [50, 100, 250, 400])
def test_a_pitch_is_no_repetition(hz, rate):
    assert not detect("repeat", as_sound(vowel(hz, rate), rate))


@pytest.mark.parametrize("stride", [4, 12, 60, 480])
def test_a_pattern_with_a_stride_of_the_vocoder_is_a_repetition(stride):
    wav = speech()
    pattern = np.random.default_rng(1).standard_normal(stride)
    pattern = 0.1 * (pattern - pattern.mean()) / pattern.std()
    wav[48_000:52_800] = torch.from_numpy(np.resize(pattern, 4800)).float()
    (spot,) = detect("repeat", as_sound(wav, SAMPLE_RATE))
    assert spot.start == pytest.approx(2.0, abs=0.1) and f"every {stride} samples" in spot.note


@pytest.mark.parametrize(("dbfs", "lead_s"), [(-50, 0.5), (-60, 1.4), (-45, 1.0)])
def test_a_breath_or_a_room_before_speech_is_no_step_in_level(dbfs, lead_s):
    noise = np.random.default_rng(0).standard_normal(int(lead_s * SAMPLE_RATE))
    noise = sosfilt(butter(2, (300, 4000), "band", fs=SAMPLE_RATE, output="sos"), noise)
    noise *= 10 ** (dbfs / 20) / noise.std()
    wav = torch.cat((torch.from_numpy(noise).float(), speech()))
    assert not detect("step", as_sound(wav, SAMPLE_RATE))


def test_a_mouth_click_is_quieter_than_the_pulses_of_the_voice():
    wav = speech()
    quiet = int(np.argmin(as_sound(wav, SAMPLE_RATE).levels[100:200])) + 100
    wav[quiet * 240 : quiet * 240 + 3] += torch.tensor([0.01, -0.008, 0.003])
    assert not detect("click", as_sound(wav, SAMPLE_RATE))


def test_edges_and_offset_are_properties_unless_a_model_made_the_sound():
    loud = np.flatnonzero(as_sound(speech(), SAMPLE_RATE).levels > -20) * 240  # first samples of loud frames
    wav = speech()[loud[0] : loud[-1]] + 0.02
    unknown = find_glitches(wav, SAMPLE_RATE)
    assert not len(unknown) and set(unknown.properties["kind"]) >= CUT
    assert "defects if a model made this sound" in repr(unknown)
    assert "if a model made it" in unknown.properties["cause"][0]
    unknown.assert_ok()

    recording = find_glitches(wav, SAMPLE_RATE, synthesised=False)
    assert len(recording.properties) == len(unknown.properties) and "if a model" not in repr(recording)
    ours = Trace({"hift/wav": wav, "hift/f0": torch.full((100,), 120.0)}, {"sample_rate": SAMPLE_RATE})
    for made in (find_glitches(wav, SAMPLE_RATE, synthesised=True), find_glitches(ours)):
        assert set(made.table["kind"]) >= CUT and not len(made.properties)
        with pytest.raises(WorkbenchError, match="offset"):
            made.assert_ok()


def test_a_click_is_a_defect_in_a_recording_too():
    found = find_glitches(inject(speech(), SAMPLE_RATE, "click", 4).wav, SAMPLE_RATE, synthesised=False)
    assert [f.kind for f in found] == ["click"] and found[0].severity == "defect"


def test_a_cause_that_the_trace_refutes_is_not_named():
    single = {"hift_dtype": "float32", "source_dtype": "float32", "head_dtype": "float32"}
    wav = speech() + 0.02

    def cause(options):
        found = find_glitches(Trace({"hift/wav": wav}, {"options": options}))
        return next(finding.cause for finding in found if finding.kind == "offset")

    assert cause({}).startswith("not known") and "half precision" in cause({})
    assert "half precision" not in cause(single)
    assert cause(single | {"head_dtype": "float16"}).startswith("perhaps the vocoder in half precision")


def test_one_run_of_bad_frames_is_one_finding():
    f0 = torch.full((280,), 120.0)
    f0[50:60] = torch.linspace(2e4, 1e5, 10)
    found = find_glitches(Trace({"hift/wav": speech(), "hift/f0": f0}, {}))
    (high,) = [finding for finding in found if finding.kind == "f0"]
    assert (high.start, high.end) == pytest.approx((1.0, 1.2)) and "100,000 Hz" in high.cause


def test_a_hiss_is_not_reported_as_a_noise_floor_as_well():
    found = find_glitches(inject(speech(), SAMPLE_RATE, "hiss", 3).wav, SAMPLE_RATE)
    assert "hiss" in set(found.properties["kind"]) and "noise floor" not in set(found.properties["kind"])


def test_pitch_of_a_vowel_is_found():
    sound = as_sound(vowel(200, 16_000), 16_000)
    assert voiced_frames(sound)[10:-10].all()
    assert (
        frames_at_pitch(sound, 200)[10:-10].mean() > 0.9 and frames_at_pitch(sound, 400)[10:-10].mean() < 0.1
    )


def test_speech_that_is_longer_or_shorter_than_its_text_is_found():
    said = {
        "text": "It is late.",
        "prompt": {"text": "A line of some forty letters for the prompt.", "seconds": 3.0},
    }

    def spots(n_tokens, **attrs):
        wav = torch.zeros(960 * n_tokens)
        data = {"hift/wav": wav, "lm/speech_token": torch.zeros(n_tokens, dtype=torch.long)}
        return detect("pace", as_sound(Trace(data, said | attrs)))

    assert not spots(19) and not spots(40)
    assert "the prompt's pace" in spots(100)[0].note and spots(5)
    assert not spots(100, text="A text of about fifty letters, which takes four seconds to be read aloud.")
    # Six times too long a transcript says nothing of the pace.
    wrong = {"text": "word " * 60, "seconds": 3.0}
    assert "another transcript?" in spots(100, prompt=wrong)[0].note
    assert not spots(60, text="现在已经很晚了。") and spots(150, text="很晚。", prompt={})


def test_text_tokens_stand_in_for_a_text_that_was_not_recorded():
    data = {"hift/wav": torch.zeros(96_000), "lm/speech_token": torch.zeros(100, dtype=torch.long)}
    for n_text, n_found in ((4, 1), (20, 0)):
        trace = Trace(data | {"in/text_token": torch.zeros(n_text, dtype=torch.long)}, {})
        assert len(detect("pace", as_sound(trace))) == n_found


def test_the_samples_of_a_sound_are_limited_at_every_rate():
    with pytest.raises(WorkbenchError, match=r"7\.2 million samples"):
        find_glitches(torch.zeros(7_200_001), 96_000)
