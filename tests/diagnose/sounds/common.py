"""Speech for the tests of sounds: the recordings of data/prompts, cut to a few seconds, and what is done to them."""

from functools import lru_cache

import numpy as np
import soundfile
import torch

import workbench as wb
from workbench.speech.frontend.audio import change_speed, resample
from workbench.speech.frontend.audio_files import read_wav

VOICES = ("kumo", "alpha", "gongitsune", "nezumi", "tebukuro")
SECONDS = 2.5


@lru_cache
def speech(name="kumo_0", rate=24_000, seconds=SECONDS):
    """Return samples (N,) of one recording at a rate, float64."""
    wav, own = read_wav(wb.data_path(f"prompts/{name}.flac"))
    wav = wav[: round(seconds * own)].double()
    return resample(wav, own, rate).numpy() if rate != own else wav.numpy()


def pcm16(wav):
    """Return samples as a 16-bit file holds them."""
    return np.clip(np.rint(wav * 32768), -32768, 32767) / 32768


def dithered(wav, seed=0):
    """Return samples as a 16-bit file with triangular dither holds them."""
    random = np.random.default_rng(seed)
    noise = random.uniform(-0.5, 0.5, len(wav)) + random.uniform(-0.5, 0.5, len(wav))
    return np.rint(wav * 32768 + noise) / 32768


def delayed(wav, samples):
    """Return a sound that begins later; a fraction of a sample by a phase in its Fourier transform."""
    whole = int(np.floor(samples))
    padded = np.concatenate([np.zeros(whole), wav, np.zeros(64)])
    phase = np.exp(-2j * np.pi * np.fft.rfftfreq(len(padded)) * (samples - whole))
    return np.fft.irfft(np.fft.rfft(padded) * phase, len(padded))


def drifted(wav, ppm):
    """Return a sound that falls behind by so many parts per million."""
    return change_speed(wav, 1 / (1 + ppm * 1e-6))


def at_rate(wav, rate, other):
    """Return a sound resampled by another resampler than that of the comparison."""
    return resample(torch.from_numpy(wav), rate, other).numpy()


def noisy(wav, snr_db, seed=0):
    """Return a sound with white noise."""
    noise = np.random.default_rng(seed).standard_normal(len(wav))
    return wav + noise * np.sqrt(np.square(wav).mean()) * 10 ** (-snr_db / 20)


def written(path, wav, rate=24_000, subtype="FLOAT"):
    """Write a sound file and return its path as text."""
    soundfile.write(str(path), wav, rate, subtype=subtype)
    return str(path)
