"""Measure a recording to clone: silence, level, clipping, offset, bandwidth, noise, two voices.

The limits were set on 61 clean recordings, of 29 voices of LibriSpeech, one of LJ Speech and the bundled
prompts. What they reach stands beside each limit. Damaged copies of them lie beyond.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from workbench.speech.frontend.audio import WHISPER_RATE, mel_filters, resample

Array = np.ndarray
SOUND_KINDS = (
    *("voice", "leading silence", "trailing silence", "level", "clipping", "offset", "bandwidth", "noise"),
    "two voices",
)
SPEECH_KINDS = ("leading silence", "trailing silence", "bandwidth", "noise", "two voices")  # need speech
UNCHECKED_KINDS = {
    "voices at once": "people who speak at the same time are not told apart",
    "like voices": "two voices in turn are told apart by pitch and timbre, from about 2 s each; many are not",
    "room and music": "echo, music and who speaks are not measured",
}

MAX_SILENCE_S = 1.0  # before the first voiced sound or behind the last; clean recordings have up to 0.83
MIN_LEVEL_DB = -40.0  # dB of full scale, of loud speech; clean recordings have -29 to -13
MAX_LEVEL = 1.02  # of full scale; an edge beyond is cut by any player
MIN_CLIPPED, MIN_TOPS = 10, 3  # samples in flat tops, and tops; clean recordings have none
MAX_EVEN_PEAKS = 0.3  # share of peaks near the highest ones; clean recordings have up to 0.20
MAX_OFFSET = 0.01  # of full scale; clean recordings have up to 0.002, and one has 0.036
MIN_RATE = 16_000  # Hz; upstream refuses less
MIN_HIGH_DB = -58.0  # 6.3 to 7.7 kHz beside 0.3 to 3.4 kHz; clean recordings have -38 to -5
MIN_SNR_DB = 20.0  # loud speech above the quietest frames; clean recordings have 28 to 77

FRAME_S = 0.01
WINDOW = 640  # samples at 16 kHz of a spectrum: 40 ms, three periods of a low voice
SPECTRUM = 1280  # samples of its transform: autocorrelation must not wrap around
RUMBLE_S = 0.05  # a mean over so many seconds follows what lies below about 40 Hz
MIN_PITCH, MAX_PITCH = 70, 400  # Hz
PITCH_BAND = (60, 1500)  # Hz; here nearly all power of a voice is harmonic
VOICED = 0.6  # autocorrelation at the best period from which a frame is voiced
VOICED_FRAMES = 5  # in a row; fewer are a click or a knock
SPEECH_DB = 35.0  # below loud speech; quieter voiced frames are hum
CLEARLY_VOICED, CLEAR_DB = 0.7, 25.0  # the same of frames whose pitch and timbre count
LOUD_FRAMES = 100  # the loudest second is loud speech
PAUSE_S = 0.5  # a longer gap between voiced frames is no speech
MARGIN_S = 0.3  # of speech before the first and behind the last voiced frame
DIGITAL_SILENCE_DB = -95.0  # quieter frames were never recorded, and say nothing of noise
LOW_BAND, HIGH_BAND = (300, 3400), (6300, 7700)  # Hz
STEADY_DB, STEADY_OCTAVES = 1.5, 0.02  # a sound that varies less in level and in pitch is a tone, not speech

# Two voices: on both sides of some place pitch and timbre of the voiced frames differ.
CEPSTRUM = 13  # coefficients that describe a timbre, without the level
TIMBRE_BANDS = 24
SIDE_FRAMES = (100, 400)  # voiced frames on a side, at least and at most
OCTAVE_WEIGHT = 4.0  # of a difference in pitch, beside standard deviations of the timbre
CORRELATED = 12.0  # neighbouring frames are alike: a mean of n frames is as uncertain as one of n / 12
# The distance from which there are two voices: with 100 frames on the shorter side, and with 200 or more. One
# voice reaches up to 0.7 of it.
TWO_VOICES = ((100, 13.5), (200, 5.0))


class SoundMeasures(NamedTuple):
    """Figures of one recording; NaN where there is no voice to measure them on."""

    lead_s: float  # seconds before the first voiced sound
    tail_s: float  # seconds behind the last
    speech_s: float  # seconds of speech, without pauses
    level_db: float  # of loud speech, dB of full scale
    peak: float  # of full scale
    clipped: int  # samples in flat tops
    tops: int  # flat tops
    even_peaks: float  # share of the peaks of speech that are nearly as high as the highest
    offset: float  # mean, of full scale
    rate_hz: int
    high_db: float  # 6.3 to 7.7 kHz beside 0.3 to 3.4 kHz; NaN below 16 kHz
    snr_db: float  # loud speech above the quietest frames
    is_steady: bool  # whether level and pitch never change
    two_voices: float  # distance between the voices before and behind a place, over its limit

    @property
    def is_speech(self) -> bool:
        """Whether there is a voice, or at least something that is no steady tone."""
        return not (np.isnan(self.lead_s) or self.is_steady)


class _Frames(NamedTuple):
    """What every 10 ms of a recording are, at 16 kHz."""

    level: Array  # (T,) dB of full scale, without rumble
    loud: float  # dB, the median of the loudest second
    power: Array  # (T, bins) spectrum
    octaves: Array  # (T,) log2 of the pitch, also where there is none
    is_voiced: Array  # (T,) bool
    is_clear: Array  # (T,) bool, voiced beyond doubt and loud: whose pitch and timbre count


def measure(wav: Array, rate: int) -> SoundMeasures:
    """Measure a recording (N,) that `check_recording` accepts."""
    wav = np.asarray(wav, dtype=np.float64)
    frames = _frames(wav, rate)
    loud = frames.loud
    clipped, tops = _flat_tops(wav)
    high_db = _high_db(frames) if rate >= MIN_RATE else np.nan
    spoken = np.flatnonzero(frames.is_voiced)
    lead_s = tail_s = speech_s = snr_db = two_voices = np.nan
    is_steady = False
    if len(spoken):
        first, last, count = spoken[0], spoken[-1], len(frames.level)
        lead_s, tail_s = first * FRAME_S, (count - 1 - last) * FRAME_S
        gaps = np.diff(spoken) * FRAME_S
        speech_s = (last + 1 - first) * FRAME_S - gaps[gaps > PAUSE_S].sum()
        margin = round(MARGIN_S / FRAME_S)
        around = frames.level[max(0, first - margin) : last + 1 + margin]
        snr_db = loud - float(np.percentile(around[around > DIGITAL_SILENCE_DB], 5))
        is_steady = bool(
            frames.level[spoken].std() < STEADY_DB and frames.octaves[spoken].std() < STEADY_OCTAVES
        )
        two_voices = _voice_change(frames)
    return SoundMeasures(
        lead_s=float(lead_s),
        tail_s=float(tail_s),
        speech_s=0.0 if np.isnan(speech_s) else float(speech_s),
        level_db=loud,
        peak=float(np.abs(wav).max()),
        clipped=clipped,
        tops=tops,
        even_peaks=_even_peaks(wav - wav.mean(), rate, frames),
        offset=float(wav.mean()),
        rate_hz=rate,
        high_db=float(high_db),
        snr_db=float(snr_db),
        is_steady=is_steady,
        two_voices=float(two_voices),
    )


def sound_problems(m: SoundMeasures) -> Iterator[tuple[str, str]]:
    """Yield (kind, sentence) of what is unusual in a recording."""
    if np.isnan(m.lead_s):
        yield "voice", "no voiced speech was found: is it noise, whispered, or another file?"
    elif m.is_steady:
        yield "voice", "level and pitch never change, as in a tone: is it speech?"
    for kind, seconds, where in (
        ("leading silence", m.lead_s, "before the first voiced sound"),
        ("trailing silence", m.tail_s, "behind the last voiced sound"),
    ):
        if seconds > MAX_SILENCE_S:
            yield (
                kind,
                (
                    f"{seconds:.1f} s {where} (expected {MAX_SILENCE_S:g} at most): the voice imitates "
                    "silence too; cut it"
                ),
            )
    if m.level_db < MIN_LEVEL_DB:
        yield (
            "level",
            (
                f"loud speech has {m.level_db:.0f} dB of full scale (expected {MIN_LEVEL_DB:.0f} or more): "
                "record it "
                "louder, or amplify it"
            ),
        )
    if m.peak > MAX_LEVEL:
        yield "level", f"it reaches {m.peak:.2f} of full scale (expected 1 at most): scale it down"
    if m.clipped >= MIN_CLIPPED and m.tops >= MIN_TOPS:
        yield (
            "clipping",
            (f"{m.clipped} samples stand in {m.tops} flat tops: it was recorded too loud; record it again"),
        )
    elif m.is_speech and m.even_peaks > MAX_EVEN_PEAKS:
        yield (
            "clipping",
            (
                f"{m.even_peaks:.0%} of its peaks are nearly as high as the highest (expected "
                f"{MAX_EVEN_PEAKS:.0%} at "
                "most): it was clipped before it was resampled or coded, or strongly limited; take another "
                "recording"
            ),
        )
    if abs(m.offset) > MAX_OFFSET:
        yield (
            "offset",
            (f"its mean is {m.offset:+.3f} of full scale (expected 0 within {MAX_OFFSET:g}): subtract it"),
        )
    if m.rate_hz < MIN_RATE:
        yield (
            "bandwidth",
            (
                f"{m.rate_hz} samples a second hold nothing above {m.rate_hz / 2000:g} kHz; upstream refuses "
                "less than "
                f"{MIN_RATE}: take a recording of 24000 or more"
            ),
        )
    elif m.is_speech and m.high_db < MIN_HIGH_DB:
        yield (
            "bandwidth",
            (
                f"nothing lies above 6 kHz ({m.high_db:.0f} dB beside the speech; expected {MIN_HIGH_DB:.0f} "
                "or more): it "
                "comes from a telephone or a lower rate; take a recording of full bandwidth"
            ),
        )
    if m.is_speech and m.snr_db < MIN_SNR_DB:
        yield (
            "noise",
            (
                f"loud speech is only {m.snr_db:.0f} dB above the background (expected {MIN_SNR_DB:.0f} or "
                "more): the voice "
                "imitates noise too; record it in a quiet room"
            ),
        )
    if m.two_voices > 1:
        yield (
            "two voices",
            ("pitch and timbre change between its parts as if two people spoke in turn: cut out one of them"),
        )


def _frames(wav: Array, rate: int) -> _Frames:
    samples = resample(torch.from_numpy(wav).float(), rate, WHISPER_RATE).double().numpy()
    hop = round(FRAME_S * WHISPER_RATE)
    count = len(samples) // hop
    level = _decibel(np.square(_without_rumble(samples)[: count * hop].reshape(count, hop)).mean(1))

    window = np.hanning(WINDOW)
    padded = np.pad(samples, (WINDOW // 2, WINDOW))
    power = np.square(
        np.abs(np.fft.rfft(sliding_window_view(padded, WINDOW)[::hop][:count] * window, SPECTRUM))
    )
    hertz = np.fft.rfftfreq(SPECTRUM, 1 / WHISPER_RATE)
    in_band = (hertz > PITCH_BAND[0]) & (hertz < PITCH_BAND[1])
    # Dividing by the window's own autocorrelation undoes that it makes long lags smaller (Boersma 1993).
    own = np.fft.irfft(np.square(np.abs(np.fft.rfft(window, SPECTRUM))))
    correlation = np.fft.irfft(np.where(in_band, power, 0.0) + 1e-12)
    lags = np.arange(WHISPER_RATE // MAX_PITCH, WHISPER_RATE // MIN_PITCH + 1)
    by_lag = correlation[:, lags] / correlation[:, :1] / (own[lags] / own[0])
    loud = float(np.median(np.sort(level)[-LOUD_FRAMES:]))
    quietest = max(loud - SPEECH_DB, DIGITAL_SILENCE_DB)
    is_voiced = _long_runs((by_lag.max(1) > VOICED) & (level > quietest), VOICED_FRAMES)
    is_clear = _long_runs((by_lag.max(1) > CLEARLY_VOICED) & (level > loud - CLEAR_DB), VOICED_FRAMES)
    octaves = np.log2(WHISPER_RATE / lags[by_lag.argmax(1)])
    return _Frames(level, loud, power, octaves, is_voiced, is_clear)


def _without_rumble(samples: Array) -> Array:
    half = round(RUMBLE_S * WHISPER_RATE / 2)
    total = np.cumsum(np.concatenate(([0.0], samples)))
    low = np.maximum(np.arange(len(samples)) - half, 0)
    high = np.minimum(np.arange(len(samples)) + half, len(samples))
    return samples - (total[high] - total[low]) / (high - low)


def _decibel(power: Array) -> Array:
    return 10 * np.log10(np.maximum(power, 1e-12))


def _long_runs(mask: Array, shortest: int) -> Array:
    """Return a mask without its runs of fewer than `shortest` true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int), [0]))))
    kept = np.zeros(len(mask), dtype=bool)
    for first, end in edges.reshape(-1, 2):
        kept[first:end] = end - first >= shortest
    return kept


def _flat_tops(wav: Array) -> tuple[int, int]:
    """Return samples at the highest or lowest value with both neighbours there as well, and runs of them."""
    samples = runs = 0
    for side in (wav, -wav):
        is_top = side >= 0.999 * side.max()
        is_flat = is_top[:-2] & is_top[1:-1] & is_top[2:] & (side.max() > 0)
        samples += int(is_flat.sum())
        runs += int((np.diff(is_flat.astype(int), prepend=0) == 1).sum())
    return samples, runs


def _even_peaks(wav: Array, rate: int, frames: _Frames) -> float:
    """Return the share of frames of speech whose peak is nearly as high as those of the loudest twentieth."""
    n = round(FRAME_S * rate)
    count = min(len(wav) // n, len(frames.level))
    is_speech = frames.level[:count] > frames.loud - 20
    peaks = np.abs(wav[: count * n]).reshape(count, n).max(1)[is_speech]
    return float((peaks > 0.85 * np.percentile(peaks, 95)).mean()) if len(peaks) else 0.0


def _high_db(frames: _Frames) -> float:
    """Return how loud the high band gets beside the low one, dB, each in its loudest frames of speech."""
    hertz = np.fft.rfftfreq(SPECTRUM, 1 / WHISPER_RATE)
    levels = []
    for low, high in (HIGH_BAND, LOW_BAND):
        band = frames.power[frames.level > frames.loud - 20][:, (hertz > low) & (hertz < high)]
        levels.append(float(np.percentile(_decibel(band.mean(1)), 95)))
    return levels[0] - levels[1]


def _voice_change(frames: _Frames) -> float:
    """Return the largest distance between the voices before and behind any place, over its limit."""
    from scipy.fft import dct  # slow to import

    filters = mel_filters(
        WHISPER_RATE, SPECTRUM, TIMBRE_BANDS, 100.0, 7000.0, torch.device("cpu"), torch.float64
    ).numpy()
    voiced = frames.power[frames.is_clear] @ filters.T
    timbre = dct(np.log(voiced + 1e-8), norm="ortho")[:, 1 : CEPSTRUM + 1]
    octaves = frames.octaves[frames.is_clear]
    fewest, most = SIDE_FRAMES
    worst = 0.0
    for k in range(fewest, len(octaves) - fewest + 1, 5):
        left, right = slice(max(0, k - most), k), slice(k, k + most)
        sizes = [len(octaves[left]), len(octaves[right])]
        shift = timbre[left].mean(0) - timbre[right].mean(0)
        spread = (timbre[left].var(0) + timbre[right].var(0)) / 2
        chance = CORRELATED * CEPSTRUM * (1 / sizes[0] + 1 / sizes[1])
        interval = np.median(octaves[left]) - np.median(octaves[right])
        distance = (np.square(shift) / spread).sum() - chance + (OCTAVE_WEIGHT * interval) ** 2
        limit = np.interp(min(sizes), *zip(*TWO_VOICES, strict=True))
        worst = max(worst, float(distance / limit))
    return worst
