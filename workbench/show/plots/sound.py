"""Figures of the vocoder's output: waveform, spectrogram, fundamental frequency."""

import math

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from workbench.diagnose.compare.plausibility import MAX_F0
from workbench.errors import WorkbenchError
from workbench.show.plots.axes import (
    SIDES,
    Names,
    Style,
    as_float64,
    colorbar,
    legend,
    reference_style,
    require,
    seconds_axis,
    set_title,
    single_axes,
    with_reference,
)
from workbench.show.plots.palette import BLUE, COLORS, GREEN, ORANGE, PURPLE, SKY, VERMILLION, YELLOW
from workbench.speech.config import RELEASED
from workbench.trace.trace import Trace

MAX_COLUMNS = 2000  # of an envelope or spectrogram: more than a figure has pixels
MIN_LEVEL = -100.0  # dB of full scale, the darkest colour of a spectrogram
VOICED_ABOVE = RELEASED.hift.nsf_voiced_threshold  # Hz
AUDIO_LIMIT = RELEASED.hift.audio_limit  # where the vocoder clamps
KIND_STYLES = [(ORANGE, "//"), (SKY, "\\\\"), (PURPLE, "xx"), (GREEN, ".."), (YELLOW, "||"), (BLUE, "--")]
LANE = 0.07  # height of the lane of a kind of findings, as a share of the figure's; at most 12 kinds fit
CLAMPED = Style(ORANGE, "v")
NONFINITE = Style(VERMILLION, "X")


# ---- waveform


def waveform(trace: Trace, *, findings: object | None = None, ax: Axes | None = None) -> Axes:
    """Draw the waveform; of a long one the smallest and largest sample of each of 2000 columns.

    Parameters
    ----------
    trace : Trace
        With `hift/wav`. Samples at the vocoder's clamp and samples that are NaN or Inf are marked.
    findings : DataFrame, or an object that has one as `table` or from `to_frame()`, optional
        Columns `kind`, `start` and `end` (seconds); each kind has a lane below the waveform.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    WorkbenchError
        When there is no waveform, or the findings have other columns.

    Examples
    --------
    >>> ax = wb.plots.waveform(trace, findings=wb.find_glitches(trace))
    """
    require(trace, "hift/wav")
    wav = as_float64(trace.wav)  # (N,)
    rate = trace.sample_rate
    table = None if findings is None else _findings_table(findings)
    finite = np.where(np.isfinite(wav), wav, np.nan)
    ax = single_axes(ax, (8, 3.2), trace)
    time, curve = _envelope(finite, rate)
    ax.plot(time, curve, color=BLUE, linewidth=0.7)
    if table is not None:
        _shade_findings(ax, table)
    is_clamped = np.abs(curve) >= AUDIO_LIMIT
    n_clamped = int((np.abs(finite) >= AUDIO_LIMIT).sum())
    _mark(ax, time[is_clamped], curve[is_clamped], f"clamped at ±{AUDIO_LIMIT:g}", n_clamped, CLAMPED)
    # One mark per column that has samples which are not finite.
    is_nonfinite = np.isnan(finite)
    columns = np.unique(np.flatnonzero(is_nonfinite) * MAX_COLUMNS // len(wav))
    gaps = columns * len(wav) / MAX_COLUMNS / rate  # seconds
    _mark(ax, gaps, np.zeros(len(gaps)), "NaN or Inf", int(is_nonfinite.sum()), NONFINITE)
    peak = np.nanmax(np.abs(finite), initial=1.0)
    lanes = 0.0 if table is None else LANE * table["kind"].nunique()  # share of the height
    lowest = -1.05 * peak - 2.1 * peak * lanes / (1 - lanes)
    ax.set(ylabel="full scale = 1", xlim=(0, len(wav) / rate), ylim=(lowest, 1.05 * peak))
    ax.set_yticks([-1, -0.5, 0, 0.5, 1] if peak <= 1 else [-peak, 0, peak])
    set_title(ax, trace.attrs.get("text", ""))
    seconds_axis(ax, trace)
    legend(ax)
    return ax


def _envelope(wav: NDArray, rate: float) -> tuple[NDArray, NDArray]:
    """Return times and values of every sample, or of the smallest and the largest of each column in turn."""
    if len(wav) <= 2 * MAX_COLUMNS:
        return np.arange(len(wav)) / rate, wav
    width = math.ceil(len(wav) / MAX_COLUMNS)  # samples per column
    padded = np.pad(wav, (0, -len(wav) % width), constant_values=np.nan)
    columns = padded.reshape(-1, width)  # (columns, width)
    lowest = np.fmin.reduce(columns, axis=1)  # fmin and fmax ignore NaN
    highest = np.fmax.reduce(columns, axis=1)
    centres = (np.arange(len(columns)) + 0.5) * width / rate  # seconds
    return np.repeat(centres, 2), np.stack([lowest, highest], axis=1).ravel()


def _mark(ax: Axes, time: NDArray, y: NDArray, name: str, count: int, style: Style) -> None:
    """Mark places; the legend states how many samples they stand for."""
    if count:
        ax.plot(time, y, style.marker, color=style.color, markersize=4, label=f"{name}:\n{count} samples")


def _findings_table(findings: object) -> pd.DataFrame:
    table = getattr(findings, "table", findings)
    if not isinstance(table, pd.DataFrame) and hasattr(findings, "to_frame"):
        table = findings.to_frame()
    if not isinstance(table, pd.DataFrame) or not {"kind", "start", "end"} <= set(table.columns):
        given = ", ".join(map(str, getattr(table, "columns", ()))) or type(findings).__name__
        raise WorkbenchError(f"findings have {given}; expected a table with kind, start and end in seconds")
    return table


def _shade_findings(ax: Axes, table: pd.DataFrame) -> None:
    """Draw each kind in a lane of its own below the waveform, so that none hides another."""
    for number, (kind, rows) in enumerate(table.groupby("kind", sort=True)):
        color, hatch = KIND_STYLES[number % len(KIND_STYLES)]
        spans = [(start, end - start) for start, end in zip(rows["start"], rows["end"], strict=True)]
        ax.broken_barh(
            spans,
            (LANE * number + 0.01, LANE - 0.02),
            transform=ax.get_xaxis_transform(),  # y from 0 to 1 of the panel
            facecolor=(color, 0.6),
            edgecolor=color,
            hatch=hatch,
            label=f"{kind} ({len(rows)})",
        )


# ---- spectrogram


def spectrogram(trace: Trace, *, n_fft: int = 1024, ax: Axes | None = None) -> Axes:
    """Draw the power of the waveform over time and frequency; a sine of full scale has 0 dB.

    Parameters
    ----------
    trace : Trace
        With `hift/wav`.
    n_fft : int
        Samples in a Hann window; the hop is a quarter of it, more in long recordings.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    WorkbenchError
        When there is no waveform.

    Examples
    --------
    >>> ax = wb.plots.spectrogram(trace)
    """
    require(trace, "hift/wav")
    wav = trace.wav.double()  # (N,)
    rate = trace.sample_rate
    wav = torch.where(wav.isfinite(), wav, torch.nan)  # Inf would raise a warning
    window = torch.hann_window(n_fft, dtype=torch.float64)
    hop = max(n_fft // 4, len(wav) // MAX_COLUMNS)
    spectrum = torch.stft(wav, n_fft, hop, window=window, pad_mode="constant", return_complex=True)  # (F, T)
    amplitude = 2 * spectrum.abs() / window.sum()
    level = 20 * amplitude.clamp(min=10 ** (MIN_LEVEL / 20)).log10()  # dB
    half_frame = hop / rate / 2  # seconds; frames are centred
    last = (level.shape[1] - 1) * hop / rate
    ax = single_axes(ax, (8, 3.6), trace)
    image = ax.imshow(
        as_float64(level),
        extent=(-half_frame, last + half_frame, 0, rate / 2000),  # seconds, kHz up to half the rate
        vmin=MIN_LEVEL,
        vmax=0,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=COLORS,
    )
    image.set_cmap(image.get_cmap().with_extremes(bad=VERMILLION))
    ax.set(ylabel="kHz", xlim=(0, len(wav) / rate))
    set_title(ax, trace.attrs.get("text", ""))
    seconds_axis(ax, trace)
    colorbar(image, ax, "dB of full scale")
    return ax


# ---- fundamental frequency


def f0(trace: Trace, *, reference: Trace | None = None, names: Names = SIDES, ax: Axes | None = None) -> Axes:
    """Draw the fundamental frequency of voiced frames, and mark values that no voice reaches.

    Parameters
    ----------
    trace : Trace
        With `hift/f0`. Frames at or below 10 Hz are unvoiced and leave a gap.
    reference : Trace, optional
        Drawn over it, dashed.
    names : (str, str)
        What the figure calls reference and candidate.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    WorkbenchError
        When there is no `hift/f0`.

    Examples
    --------
    >>> ax = wb.plots.f0(trace)
    """
    sides = with_reference(trace, reference)
    for side, _ in sides:
        require(side, "hift/f0")
    ax = single_axes(ax, (8, 2.8), *(side for side, _ in sides), names=names)
    highest = 0.0  # Hz, of the voiced frames
    for side, is_reference in sides:
        owner = "" if reference is None else f", {names[0] if is_reference else names[1]}"
        highest = max(highest, _draw_f0(ax, as_float64(side["hift/f0"]), is_reference, owner))
    duration = max(len(side["hift/f0"]) for side, _ in sides) / RELEASED.mel.frame_rate
    ax.set(ylabel="f0 (Hz)", ylim=(0, 1.15 * highest or MAX_F0), xlim=(0, duration))
    set_title(ax, trace.attrs.get("text", ""))
    seconds_axis(ax, trace)
    legend(ax)
    return ax


def _draw_f0(ax: Axes, values: NDArray, is_reference: bool, owner: str) -> float:
    """Draw one side (T,) and return the highest voiced value in Hz."""
    style = {"color": BLUE, "marker": "o", "markersize": 4, "linewidth": 2.6}
    if is_reference:
        style = {"marker": "s"} | reference_style(ax)
    time = (np.arange(len(values)) + 0.5) / RELEASED.mel.frame_rate
    nonfinite = ~np.isfinite(values)
    with np.errstate(invalid="ignore"):  # comparisons with NaN
        too_high = (values > MAX_F0) & ~nonfinite
        voiced = (values > VOICED_ABOVE) & (values <= MAX_F0)
    curve = np.where(voiced, values, np.nan)
    ax.plot(time, curve, label=f"f0{owner}", **style)
    marks = [(nonfinite, 0.04, "X", "NaN or Inf", "")]
    if too_high.any():
        peak = f",\nup to {values[too_high].max():,.0f} Hz"
        marks.insert(0, (too_high, 0.96, "^", f"above {MAX_F0:g} Hz", peak))
    for frames, height, marker, name, remark in marks:
        if not frames.any():
            continue
        ax.plot(
            time[frames],
            np.full(frames.sum(), height),
            marker,
            transform=ax.get_xaxis_transform(),  # y from 0 to 1 of the panel
            color=VERMILLION,
            fillstyle="none" if is_reference else "full",
            label=f"{name}{owner}:\n{frames.sum()} of {len(values)} frames{remark}",
        )
    return np.nanmax(curve, initial=0.0)
