"""A waveform in the form that the glitch detectors read: finite, in short frames, levels in dB."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from workbench.diagnose.glitches.causes import is_synthesised
from workbench.errors import WorkbenchError
from workbench.speech.frontend.audio import frame_blocks
from workbench.trace.schema import SAMPLE_RATE
from workbench.trace.trace import Trace

Array = np.ndarray

MAX_UTTERANCE_S = 300  # seconds; the model's noise tensors reach no further
MAX_SAMPLES = 7_200_000  # 300 s at 24 kHz; bounds memory, about 60 bytes a sample
MIN_RATE, MAX_RATE = 1000, 400_000  # Hz; other values are mistaken units rather than sample rates
MAX_AMPLITUDE = 1e6  # of full scale; larger samples are clipped to it, so that squares stay finite
MIN_DB = -120.0  # dB of full scale; lower levels count as this one
EPS_POWER = 1e-30  # keeps the logarithm of silence finite
BLOCK_SAMPLES = 1 << 18  # of a waveform that are looked at at once; bounds memory
EPS_SPECTRUM = 1e-14  # the same for power spectra; far below the rounding of 16-bit samples

FRAME_S = 0.01  # seconds in a frame: shorter than any phone
RUMBLE_S = 0.05  # a mean over so many seconds follows what lies below about 40 Hz
SPECTRUM_S = 0.040  # seconds in the window of a spectrum: three periods of a low voice
LOUD_PERCENTILE, FLOOR_PERCENTILE = 95, 5  # of the frames' levels
ACTIVE_DB = 30.0  # frames more than this below the loud ones are not speech
MIN_ACTIVE_DB = -60.0  # dB of full scale; frames below are not speech, however quiet the recording is

LPC_ORDER = 12  # as in Essentia's ClickDetector; about 2 per formant, and two more
LPC_S = 0.0107  # Essentia: 512 samples at 44.1 kHz; here 256 at 24 kHz
LPC_RIDGE = 1e-3  # share of the power that is added to the diagonal, so that pure tones can be solved
LPC_EPS = 1e-12  # the same for silence


class Spot(NamedTuple):
    """A place with a score. It becomes a finding if the score reaches the detector's threshold."""

    start: float  # seconds
    end: float  # seconds
    score: float  # higher is worse; the unit is the detector's
    note: str = ""  # what was measured there; stands in brackets behind the cause
    subject: str = ""  # what the spot is about, where one place may have several; others merge


@dataclass(frozen=True, eq=False)
class Sound:
    """One utterance with everything that was recorded of it.

    Parameters
    ----------
    raw : ndarray (N,)
        Samples in float64 as given; full scale is 1.
    rate : int
        Sample rate, Hz.
    trace : Trace
        The other recorded fields; empty for a bare waveform.
    synthesised : bool, optional
        Whether a model made the sound; False for a recording of a person, None where nobody knows.
    """

    raw: Array
    rate: int
    trace: Trace = field(default_factory=lambda: Trace({}, {}))
    synthesised: bool | None = None

    @cached_property
    def bad(self) -> Array:
        """Which samples are NaN or infinite, (N,)."""
        return ~np.isfinite(self.raw)

    @cached_property
    def wav(self) -> Array:
        """Samples (N,) with NaN and infinities replaced by straight lines between their neighbours."""
        is_plain = not self.bad.any() and np.abs(self.raw).max() <= MAX_AMPLITUDE
        raw = self.raw if is_plain else np.clip(self.raw, -MAX_AMPLITUDE, MAX_AMPLITUDE)
        if not self.bad.any():
            return raw
        if self.bad.all():
            return np.zeros_like(raw)
        good = np.flatnonzero(~self.bad)
        return np.interp(np.arange(len(raw)), good, raw[good])

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.raw) / self.rate

    def samples(self, seconds: float) -> int:
        """Return the number of samples in so many seconds, at least one."""
        return max(1, round(seconds * self.rate))

    def level(self, seconds: float = FRAME_S, wav: Array | None = None) -> Array:
        """Return the level of consecutive frames, dB of full scale; an incomplete last frame is dropped."""
        wav = self.wav if wav is None else wav
        n = min(self.samples(seconds), len(wav))
        frames = wav[: len(wav) // n * n].reshape(-1, n)  # (frames, n)
        return decibel(np.square(frames).mean(1))

    @cached_property
    def levels(self) -> Array:
        """Level of every 10 ms frame without the part below about 40 Hz, dB of full scale."""
        return self.level(wav=self.wav - moving_mean(self.wav, self.samples(RUMBLE_S)))

    @cached_property
    def loud(self) -> float:
        """Level of loud speech: the loudest 5 % of the frames are above it. dB of full scale."""
        return float(np.percentile(self.levels, LOUD_PERCENTILE))

    @cached_property
    def floor(self) -> float:
        """Level of the background: the quietest 5 % of the frames are below it. dB of full scale."""
        return float(np.percentile(self.levels, FLOOR_PERCENTILE))

    @cached_property
    def active(self) -> Array:
        """Which 10 ms frames are speech, (frames,)."""
        return self.levels > max(self.loud - ACTIVE_DB, MIN_ACTIVE_DB)

    def power(self) -> Iterator[Array]:
        """Yield the power spectrum in blocks (frames, bins), which as a whole would fill the memory.

        A 40 ms Hann window is centred on the start of every 10 ms frame.
        """
        n = self.samples(SPECTRUM_S)
        hop = self.samples(FRAME_S)
        padded = np.pad(self.wav, (n // 2, n // 2 + hop))
        windows = sliding_window_view(padded, n)[::hop][: len(self.levels)]  # (frames, n)
        for block in frame_blocks(len(windows), n):
            spectrum = np.fft.rfft(windows[block] * np.hanning(n))
            yield np.square(np.abs(spectrum)) / n + EPS_SPECTRUM

    @cached_property
    def frequencies(self) -> Array:
        """Frequency of each bin of `power`, (bins,), Hz."""
        return np.fft.rfftfreq(self.samples(SPECTRUM_S), 1 / self.rate)

    @cached_property
    def residual(self) -> Array:
        """Error of predicting each sample from the 12 before it, (N,).

        Speech is smooth enough to be predicted, except at the pulses of the voice; a click is not.
        The weights of the prediction are found anew for every block of about 5 ms.
        """
        n = max(LPC_ORDER + 1, self.samples(LPC_S))  # samples in a window
        hop = n // 2  # samples in a block
        count = -(-len(self.wav) // hop)  # blocks, rounded up
        padded = np.pad(self.wav, (n, 2 * n))

        # The windows (count, n) that weights are computed from. Each reaches to both sides of its block.
        first = n - (n - hop) // 2
        windows = sliding_window_view(padded, n)[first::hop][:count]
        # Each block with the samples before it.
        blocks = sliding_window_view(padded, hop + LPC_ORDER)[n - LPC_ORDER :: hop][:count]
        errors = np.empty(count * hop)
        for part in frame_blocks(count, n):
            errors[part.start * hop : part.stop * hop] = _prediction_error(windows[part], blocks[part])
        return errors[: len(self.wav)]


def _prediction_error(windows: Array, blocks: Array) -> Array:
    """Return the errors of the samples of blocks (count, 12 + hop), flat; windows are (count, n)."""
    n = windows.shape[1]
    # Autocorrelation of each window, (count, 2n), by way of its power spectrum.
    spectrum = np.fft.rfft(windows * np.hanning(n), 2 * n)
    corr = np.fft.irfft(np.square(np.abs(spectrum)))

    # The normal equations of linear prediction: R @ weights = r, with R[i, j] = corr[|i - j|]. The ridge
    # on the diagonal keeps R invertible for tones and silence.
    lags = np.abs(np.arange(LPC_ORDER)[:, None] - np.arange(LPC_ORDER))
    ridge = (LPC_RIDGE * corr[:, :1, None] + LPC_EPS) * np.eye(LPC_ORDER)
    right_side = corr[:, 1 : LPC_ORDER + 1, None]  # (count, LPC_ORDER, 1)
    weights = np.linalg.solve(corr[:, lags] + ridge, right_side)[..., 0]  # (count, LPC_ORDER)

    # For each sample of a block the past, newest first.
    past = sliding_window_view(blocks[:, :-1], LPC_ORDER, axis=1)[..., ::-1]  # (count, hop, LPC_ORDER)
    predicted = np.einsum("fno,fo->fn", past, weights)  # (count, hop)
    return (blocks[:, LPC_ORDER:] - predicted).ravel()


def as_sound(
    source: Trace | Tensor | Array, sample_rate: int | None = None, synthesised: bool | None = None
) -> Sound:
    """Return a trace or a waveform as a Sound; see `find_glitches` for what it may be.

    A trace says by itself that it was synthesised where it holds more than a waveform.
    """
    if isinstance(source, Trace):
        if "hift/wav" not in source:
            fields = ", ".join(source) or "nothing"
            raise WorkbenchError(
                f"the trace holds no hift/wav but {fields}; run it to the vocoder, or record the waveform"
            )
        trace = source
        raw = _to_array(source.wav)
        rate = sample_rate or source.sample_rate
    else:
        trace = Trace({}, {})
        raw = _to_array(source)
        rate = sample_rate

    if raw.ndim != 1 or not raw.size or not np.issubdtype(raw.dtype, np.number) or np.iscomplexobj(raw):
        raise WorkbenchError(
            f"a waveform of shape {raw.shape} and {raw.dtype} found; expected real samples (samples,), not "
            "empty. Of several channels pass one, or their mean"
        )
    if rate is None or not MIN_RATE <= rate <= MAX_RATE:
        raise WorkbenchError(
            f"sample_rate is {rate!r}; expected the waveform's own in Hz, such as {SAMPLE_RATE}"
        )
    if len(raw) > min(MAX_UTTERANCE_S * rate, MAX_SAMPLES):
        raise WorkbenchError(
            f"{len(raw) / rate:.0f} s at {rate} Hz found; expected {MAX_UTTERANCE_S} s and "
            f"{MAX_SAMPLES / 1e6:g} million samples at most: pass one utterance at a time"
        )
    known = is_synthesised(trace) if synthesised is None else synthesised
    return Sound(raw.astype(np.float64, copy=False), round(rate), trace, known)


def _to_array(wav: Tensor | Array) -> Array:
    """Return samples as an array; those of a tensor in float64, unless they are complex."""
    if not isinstance(wav, Tensor):
        return np.asarray(wav)
    wav = wav.detach().cpu()
    return wav.numpy() if wav.is_complex() else wav.double().numpy()


def decibel(power: Array) -> Array:
    """Return 10 log10 of a power, but at least -120 dB."""
    return np.maximum(10 * np.log10(np.maximum(power, EPS_POWER)), MIN_DB)


def moving_mean(x: Array, n: int) -> Array:
    """Return the mean of the n values around each, (N,); at the ends, of those that exist."""
    total = sums_before(x)
    before = n // 2  # of the n values, those before each place
    means = np.empty(len(x))
    for start in range(0, len(x), BLOCK_SAMPLES):
        places = np.arange(start, min(start + BLOCK_SAMPLES, len(x)))
        firsts = np.maximum(places - before, 0)
        ends = np.minimum(places - before + n, len(x))
        means[places] = (total[ends] - total[firsts]) / (ends - firsts)
    return means


def sums_before(x: Array) -> Array:
    """Return the sums of the first 0, 1, ... N values, (N + 1,)."""
    total = np.zeros(len(x) + 1)
    np.cumsum(x, out=total[1:])
    return total


def in_blocks(function: Callable[[Array], Array], x: Array, reach: int, dtype: type = np.float64) -> Array:
    """Return `function(x)` (N,) of a type, computed in blocks of time.

    Each value of the function rests on at most `reach` values of `x` before it and as many behind it.
    """
    found = np.empty(len(x), dtype)
    for start in range(0, len(x), BLOCK_SAMPLES):
        first, end = max(0, start - reach), min(start + BLOCK_SAMPLES, len(x))
        found[start:end] = function(x[first : end + reach])[start - first : end - first]
    return found


def intervals(mask: Array) -> list[tuple[int, int]]:
    """Return (first, last + 1) of every run of consecutive true values.

    >>> intervals(np.array([False, True, True, False, True]))
    [(1, 3), (4, 5)]
    """
    padded = np.concatenate(([False], mask, [False])).astype(np.int8)
    edges = np.flatnonzero(np.diff(padded))  # alternately the first of a run and the first behind it
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]
