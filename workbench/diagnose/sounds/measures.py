"""Measure one sound: its level, bandwidth, noise floor, pitch and harmonicity."""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.signal import welch

from workbench.diagnose.glitches.wave_stats import wave_report
from workbench.diagnose.sounds.sound_input import SoundInput
from workbench.speech.frontend.audio import frame_blocks, pitch, resample

Array = np.ndarray
BANDWIDTH_DB = 70.0  # below the strongest frequency; speech reaches its highest ones about 60 dB down
WELCH_S = 0.04  # seconds in the window of an average spectrum
PITCH_RATE = 16_000  # Hz; a higher rate changes no pitch
PITCH_RANGE = (60.0, 500.0)  # Hz, of a speaking voice
FRAME_S = 0.01  # seconds between two measures of pitch
VOICED = 0.8  # harmonicity from which a frame has a voice
QUIET_DB = 30.0  # frames so far below the loudest tenth hold no speech
FULL_SCALE = 32767 / 32768  # the largest value of a 16-bit file
CLIPPED_SHARE = 0.9999  # of the peak; three samples in a row above it are a flat top
MIN_CLIPPED_PEAK = 0.25  # of full scale; in quieter 16-bit sounds neighbours are equal by rounding
EPS = 1e-20  # power; keeps logarithms finite


class VoiceTrack(NamedTuple):
    """Pitch and harmonicity every 10 ms."""

    f0: Array  # (T,) Hz, also where there is no voice
    harmonicity: Array  # (T,) correlation of the frame with itself one period later, 0 to 1
    is_voiced: Array  # (T,) bool


def decibels(power: Array | float) -> Array:
    """Return a power in dB."""
    return 10 * np.log10(np.maximum(power, EPS))


def properties(sound: SoundInput) -> dict[str, float | int | str]:
    """Return what one sound alone shows.

    Returns
    -------
    dict
        `rate` (Hz), `channels`, `storage`, `seconds`, `nonfinite` and `clipped` (samples), `peak_db`,
        `level_db` (rms) and `noise_floor_db` (dB of full scale), `loudness_lufs`, `offset` (mean, of full
        scale), `bandwidth_hz`, `f0_hz` (median) and `harmonicity` (median, 0 to 1) of voiced frames. NaN
        where there is nothing to measure.
    """
    wav = sound.wav
    stats = wave_report(torch.from_numpy(wav), sound.rate)
    track = voice_track(wav, sound.rate)
    voiced = track.is_voiced
    return {
        "rate": sound.rate,
        "channels": sound.channels,
        "storage": sound.storage,
        "seconds": sound.seconds,
        "nonfinite": sound.nonfinite,
        "clipped": clipped(wav),
        "peak_db": float(decibels(stats["peak"] ** 2)),
        "level_db": float(decibels(stats["rms"] ** 2)),
        "loudness_lufs": stats["lufs"],
        "noise_floor_db": stats["noise_floor"],
        "offset": stats["dc"],
        "bandwidth_hz": bandwidth(wav, sound.rate),
        "f0_hz": float(np.median(track.f0[voiced])) if voiced.any() else math.nan,
        "harmonicity": float(np.median(track.harmonicity[voiced])) if voiced.any() else math.nan,
    }


def clipped(wav: Array) -> int:
    """Return the number of samples at full scale, or in a flat top: at the peak, as are both neighbours."""
    magnitude = np.abs(wav)
    peak = magnitude.max(initial=0.0)
    is_top = magnitude >= max(CLIPPED_SHARE * peak, MIN_CLIPPED_PEAK)
    is_clipped = magnitude >= FULL_SCALE
    is_clipped[1:-1] |= is_top[:-2] & is_top[1:-1] & is_top[2:]
    return int(is_clipped.sum())


def average_spectrum(wav: Array, rate: int) -> tuple[Array, Array]:
    """Return frequencies in Hz, and the average power of each per bin."""
    size = min(len(wav), round(WELCH_S * rate))
    hop = size - size // 2  # samples between two windows, as in `welch`
    count = (len(wav) - size) // hop + 1  # windows
    total = np.zeros(size // 2 + 1)
    for block in frame_blocks(count, size):
        part = wav[block.start * hop : (block.stop - 1) * hop + size]
        frequencies, power = welch(part, rate, nperseg=size, detrend=False, scaling="spectrum")
        total += power * (block.stop - block.start)
    return frequencies, total / count


def bandwidth(wav: Array, rate: int) -> float:
    """Return the highest frequency that is at most 70 dB below the strongest one, Hz; NaN of silence."""
    frequencies, power = average_spectrum(wav, rate)
    if not power.any():
        return math.nan
    return float(frequencies[power >= power.max() * 10 ** (-BANDWIDTH_DB / 10)].max())


def voice_track(wav: Array, rate: int) -> VoiceTrack:
    """Return pitch and harmonicity of a sound; empty if it is shorter than 100 ms."""
    if rate > PITCH_RATE:
        contiguous = torch.from_numpy(np.ascontiguousarray(wav))
        wav, rate = resample(contiguous, rate, PITCH_RATE).numpy(), PITCH_RATE
    hop, reach = round(FRAME_S * rate), round(2 * rate / PITCH_RANGE[0])  # two periods of the lowest voice
    if len(wav) < 3 * reach:
        return VoiceTrack(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool))
    f0 = pitch(wav, rate, *PITCH_RANGE, hop)
    padded = np.pad(wav, (reach, 2 * reach))  # frame t begins one `reach` before its centre, t * hop
    harmonicity, power = np.zeros(len(f0)), np.zeros(len(f0))
    for t, hertz in enumerate(f0):
        period = round(rate / hertz)
        now = padded[t * hop : t * hop + 2 * reach - period]
        later = padded[t * hop + period : t * hop + 2 * reach]
        energy = math.sqrt(float(now @ now) * float(later @ later))
        harmonicity[t] = max(0.0, float(now @ later) / energy) if energy else 0.0
        power[t] = energy
    is_loud = power > np.percentile(power, 90) * 10 ** (-QUIET_DB / 10)
    return VoiceTrack(f0, harmonicity, is_loud & (harmonicity >= VOICED))
