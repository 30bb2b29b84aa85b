"""A waveform as the glitch detectors look at it: finite, in short frames, levels in dB."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.trace.trace import Trace

Array = np.ndarray
MAX_SECONDS = 300  # the longest that the model speaks at once
LARGEST = 1e6
QUIET_DB = -120.0  # nothing is said to be quieter
FRAME_S = 0.01
ACTIVE_DB = 30.0  # below the loudest frames: what is quieter is no speech
LPC_ORDER = 12
LPC_S = 0.0107  # Essentia's ClickDetector: 512 samples at 44.1 kHz, here 256 at 24 kHz


@dataclass(frozen=True, eq=False)
class Sound:
    """One utterance.

    Parameters
    ----------
    raw : ndarray (N,)
        float64, full scale 1, as it came.
    rate : int
        Hz.
    trace : Trace
        What else was recorded; empty for a bare waveform.
    """

    raw: Array
    rate: int
    trace: Trace = field(default_factory=lambda: Trace({}, {}))

    @cached_property
    def bad(self) -> Array:
        """Which samples are NaN or infinite, (N,)."""
        return ~np.isfinite(self.raw)

    @cached_property
    def wav(self) -> Array:
        """Samples (N,), a straight line where they are not finite; at most a million times full scale."""
        raw = np.clip(self.raw, -LARGEST, LARGEST)
        if not self.bad.any():
            return raw
        if self.bad.all():
            return np.zeros_like(raw)
        good = np.flatnonzero(~self.bad)
        return np.interp(np.arange(len(raw)), good, raw[good])

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.raw) / self.rate

    def samples(self, seconds: float) -> int:
        """Return how many samples last so long; at least one."""
        return max(1, round(seconds * self.rate))

    def level(self, seconds: float = FRAME_S, wav: Array | None = None) -> Array:
        """Level of frames that follow each other, dB of full scale; a rest at the end is dropped."""
        wav = self.wav if wav is None else wav
        n = min(self.samples(seconds), len(wav))
        return decibel(np.square(wav[: len(wav) // n * n].reshape(-1, n)).mean(1))

    @cached_property
    def levels(self) -> Array:
        """Level of every 10 ms without what lies below 40 Hz or so, dB."""
        return self.level(wav=self.wav - moving_mean(self.wav, self.samples(0.05)))

    @cached_property
    def loud(self) -> float:
        """Level that the loudest twentieth of the frames reaches, dB."""
        return float(np.percentile(self.levels, 95))

    @cached_property
    def floor(self) -> float:
        """Level that the quietest twentieth of the frames stays below, dB."""
        return float(np.percentile(self.levels, 5))

    @cached_property
    def active(self) -> Array:
        """Which frames of 10 ms are speech, (frames,)."""
        return self.levels > max(self.loud - ACTIVE_DB, -60.0)

    @cached_property
    def power(self) -> Array:
        """Power spectrum (frames, bins) of 40 ms Hann windows, a frame every 10 ms."""
        n, hop = self.samples(0.04), self.samples(FRAME_S)
        padded = np.pad(self.wav, (n // 2, n // 2 + hop))
        windows = sliding_window_view(padded, n)[::hop][: len(self.levels)]
        return np.square(np.abs(np.fft.rfft(windows * np.hanning(n)))) / n + 1e-14

    @cached_property
    def frequencies(self) -> Array:
        """Of the bins of `power`, Hz."""
        return np.fft.rfftfreq(self.samples(0.04), 1 / self.rate)

    @cached_property
    def residual(self) -> Array:
        """What linear prediction from the 12 samples before cannot tell, (N,)."""
        n = max(LPC_ORDER + 1, self.samples(LPC_S))
        hop = n // 2
        count = -(-len(self.wav) // hop)
        padded = np.pad(self.wav, (n, 2 * n))
        # The window that weights are taken from reaches to both sides of the samples they predict.
        windows = sliding_window_view(padded, n)[n - (n - hop) // 2 :: hop][:count]
        corr = np.fft.irfft(np.square(np.abs(np.fft.rfft(windows * np.hanning(n), 2 * n))))
        lags = np.abs(np.arange(LPC_ORDER)[:, None] - np.arange(LPC_ORDER))
        ridge = (1e-3 * corr[:, :1, None] + 1e-12) * np.eye(LPC_ORDER)
        weights = np.linalg.solve(corr[:, lags] + ridge, corr[:, 1 : LPC_ORDER + 1, None])[..., 0]
        blocks = sliding_window_view(padded, hop + LPC_ORDER)[n - LPC_ORDER :: hop][:count]
        past = sliding_window_view(blocks[:, :-1], LPC_ORDER, axis=1)[..., ::-1]
        error = blocks[:, LPC_ORDER:] - np.einsum("fno,fo->fn", past, weights)
        return error.ravel()[: len(self.wav)]


def as_sound(source: Trace | Tensor | Array, sample_rate: int | None = None) -> Sound:
    """Take a trace or a waveform; see `find_glitches`."""
    trace = source if isinstance(source, Trace) else Trace({}, {})
    if isinstance(source, Trace) and "hift/wav" not in source:
        raise WorkbenchError(
            f"the trace holds no hift/wav but {', '.join(source) or 'nothing'}; run it to the vocoder, or "
            "record the waveform"
        )
    wav = source.wav if isinstance(source, Trace) else source
    rate = sample_rate or (source.sample_rate if isinstance(source, Trace) else None)
    raw = _array(wav)
    if raw.ndim != 1 or not raw.size or not np.issubdtype(raw.dtype, np.number) or np.iscomplexobj(raw):
        raise WorkbenchError(
            f"a waveform of shape {raw.shape} and {raw.dtype} found; expected real samples (samples,), not "
            "empty. Of several channels pass one, or their mean"
        )
    if rate is None or not 1000 <= rate <= 400_000:
        raise WorkbenchError(f"sample_rate is {rate!r}; expected the waveform's own in Hz, such as 24000")
    if len(raw) > MAX_SECONDS * rate:
        raise WorkbenchError(
            f"{len(raw) / rate:.0f} s found; expected {MAX_SECONDS} s at most: pass one utterance at a time"
        )
    return Sound(raw.astype(np.float64), round(rate), trace)


def _array(wav: Tensor | Array) -> Array:
    if not isinstance(wav, Tensor):
        return np.asarray(wav)
    wav = wav.detach().cpu()
    return wav.numpy() if wav.is_complex() else wav.double().numpy()


def decibel(power: Array) -> Array:
    """Ten times the logarithm, -120 at least."""
    return np.maximum(10 * np.log10(np.maximum(power, 1e-30)), QUIET_DB)


def moving_mean(x: Array, n: int) -> Array:
    """Mean over the n values around each, fewer at the ends, (N,)."""
    total = np.cumsum(np.concatenate(([0.0], x)))
    at = np.arange(len(x))
    low, high = np.maximum(at - n // 2, 0), np.minimum(at - n // 2 + n, len(x))
    return (total[high] - total[low]) / (high - low)


def runs(mask: Array) -> list[tuple[int, int]]:
    """First and last plus one of every run of true values.

    >>> runs(np.array([False, True, True, False, True]))
    [(1, 3), (4, 5)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
