"""Figures of what the vocoder makes and of the tokens it all follows from."""

import math
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from workbench.diagnose.compare.plausibility import MAX_F0
from workbench.errors import WorkbenchError
from workbench.show.plots.axes import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    SPEECH,
    VERMILLION,
    YELLOW,
    Look,
    axis,
    colorbar,
    grid,
    legend,
    note,
    numbers,
    require,
    seconds_axis,
    sides_of,
    titled,
    token_rate,
)
from workbench.trace.schema import STATS, SUFFIX
from workbench.trace.trace import Trace

COLUMNS = 2000  # of an envelope: more than a figure has pixels
QUIETEST = -100.0  # dB
VOICED = SPEECH.hift.nsf_voiced_threshold
LIMIT = SPEECH.hift.audio_limit
KINDS = [(ORANGE, "//"), (SKY, "\\\\"), (PURPLE, "xx"), (GREEN, ".."), (YELLOW, "||"), (BLUE, "--")]
CLAMPED, NONFINITE = Look(ORANGE, "v"), Look(VERMILLION, "X")
SPEECH_TOKEN, REPEAT, SILENT = Look(BLUE, "o"), Look(VERMILLION, "s"), Look(GREY, "d")


# ---- waveform


def waveform(trace: Trace, *, findings: object | None = None, ax: Axes | None = None) -> Axes:
    """Draw the waveform, of long ones the smallest and largest sample of each of 2000 columns.

    Parameters
    ----------
    trace : Trace
        With `hift/wav`. Samples at the vocoder's clamp and those that are NaN or Inf are marked.
    findings : DataFrame, or an object that has one as `table` or from `to_frame()`, optional
        Columns `kind`, `start` and `end` (seconds); each kind is shaded in its own colour and hatching.
    ax : Axes, optional

    Raises
    ------
    WorkbenchError
        When there is no waveform, or the findings have other columns.
    """
    require(trace, "hift/wav")
    wav, rate = numbers(trace.wav), trace.sample_rate
    table = None if findings is None else _table(findings)
    good = np.where(np.isfinite(wav), wav, np.nan)
    ax = axis(ax, (8, 2.8), trace)
    time, curve = _envelope(good, rate)
    ax.plot(time, curve, color=BLUE, linewidth=0.7)
    if table is not None:
        _shade(ax, table)
    clamped, bad = np.abs(curve) >= LIMIT, np.isnan(good)
    count = int((np.abs(good) >= LIMIT).sum())
    _mark(ax, time[clamped], curve[clamped], f"clamped at ±{LIMIT:g}", count, CLAMPED)
    gaps = np.unique(np.flatnonzero(bad) * COLUMNS // len(wav)) * len(wav) / COLUMNS / rate
    _mark(ax, gaps, np.zeros(len(gaps)), "NaN or Inf", int(bad.sum()), NONFINITE)
    tallest = np.nanmax(np.abs(good), initial=1.0)
    ax.set(ylabel="full scale = 1", xlim=(0, len(wav) / rate), ylim=(-1.05 * tallest, 1.05 * tallest))
    titled(ax, trace.attrs.get("text", ""))
    seconds_axis(ax, trace)
    legend(ax)
    return ax


def spectrogram(trace: Trace, *, n_fft: int = 1024, ax: Axes | None = None) -> Axes:
    """Draw the power spectrum of the waveform over time, 0 dB for a sine of full scale.

    Parameters
    ----------
    trace : Trace
        With `hift/wav`.
    n_fft : int
        Samples in a Hann window; the hop is a quarter of it, more in long recordings.
    ax : Axes, optional

    Raises
    ------
    WorkbenchError
        When there is no waveform.
    """
    require(trace, "hift/wav")
    wav, rate = trace.wav.double(), trace.sample_rate
    window = torch.hann_window(n_fft, dtype=torch.float64)
    hop = max(n_fft // 4, len(wav) // COLUMNS)
    wav = torch.where(wav.isfinite(), wav, torch.nan)  # Inf would warn
    spectrum = torch.stft(wav, n_fft, hop, window=window, pad_mode="constant", return_complex=True)
    level = 20 * (2 * spectrum.abs() / window.sum()).clamp(min=10 ** (QUIETEST / 20)).log10()
    ax = axis(ax, (8, 3.6), trace)
    half = hop / rate / 2  # frames are centred
    extent = (-half, (level.shape[1] - 1) * hop / rate + half, 0, rate / 2000)
    how = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", "cmap": "viridis"}
    image = ax.imshow(numbers(level), extent=extent, vmin=QUIETEST, vmax=0, **how)
    image.set_cmap(image.get_cmap().with_extremes(bad=VERMILLION))
    ax.set(ylabel="kHz", xlim=(0, len(wav) / rate))
    titled(ax, trace.attrs.get("text", ""))
    seconds_axis(ax, trace)
    colorbar(image, ax, "dB of full scale")
    return ax


def _envelope(wav: NDArray, rate: float) -> tuple[NDArray, NDArray]:
    """Every sample, or the smallest and the largest of each column one after the other."""
    if len(wav) <= 2 * COLUMNS:
        return np.arange(len(wav)) / rate, wav
    width = math.ceil(len(wav) / COLUMNS)
    parts = np.pad(wav, (0, -len(wav) % width), constant_values=np.nan).reshape(-1, width)
    both = np.stack([np.fmin.reduce(parts, axis=1), np.fmax.reduce(parts, axis=1)], axis=1)
    return np.repeat((np.arange(len(parts)) + 0.5) * width / rate, 2), both.ravel()


def _mark(ax: Axes, time: NDArray, y: NDArray, name: str, count: int, look: Look) -> None:
    """Mark places; the legend says how many samples there are."""
    if count:
        ax.plot(time, y, look.marker, color=look.color, markersize=4, label=f"{name}:\n{count} samples")


def _table(findings: object) -> pd.DataFrame:
    table = getattr(findings, "table", findings)
    if not isinstance(table, pd.DataFrame) and hasattr(findings, "to_frame"):
        table = findings.to_frame()
    if not isinstance(table, pd.DataFrame) or not {"kind", "start", "end"} <= set(table.columns):
        seen = ", ".join(map(str, getattr(table, "columns", ()))) or type(findings).__name__
        raise WorkbenchError(f"findings have {seen}; expected a table with kind, start and end in seconds")
    return table


def _shade(ax: Axes, table: pd.DataFrame) -> None:
    for number, (kind, rows) in enumerate(table.groupby("kind", sort=True)):
        color, hatch = KINDS[number % len(KINDS)]
        spans = [(start, end - start) for start, end in zip(rows["start"], rows["end"], strict=True)]
        ax.broken_barh(
            spans,
            (0, 1),
            transform=ax.get_xaxis_transform(),
            facecolor=(color, 0.35),
            edgecolor=color,
            hatch=hatch,
            label=f"{kind} ({len(rows)})",
        )


# ---- fundamental frequency


def f0(trace: Trace, *, reference: Trace | None = None, ax: Axes | None = None) -> Axes:
    """Draw the fundamental frequency where it is voiced; what no voice reaches is flagged at the upper edge.

    Parameters
    ----------
    trace : Trace
        With `hift/f0`. Frames at or below 10 Hz are unvoiced and leave a gap.
    reference : Trace, optional
        Drawn dashed.
    ax : Axes, optional

    Raises
    ------
    WorkbenchError
        When there is no `hift/f0`.
    """
    sides = sides_of(trace, reference)
    for side, _ in sides:
        require(side, "hift/f0")
    ax = axis(ax, (8, 2.8), *(side for side, _ in sides))
    top = 0.0
    for side, dashed in sides:
        value = numbers(side["hift/f0"])
        time = (np.arange(len(value)) + 0.5) / SPEECH.mel.frame_rate
        with np.errstate(invalid="ignore"):
            high, voiced = value > MAX_F0, (value > VOICED) & (value <= MAX_F0)
        curve = np.where(voiced, value, np.nan)
        top = max(top, np.nanmax(curve, initial=0.0))
        how = (
            {"linestyle": "--", "color": ORANGE, "marker": "s"} if dashed else {"color": BLUE, "marker": "o"}
        )
        who = " of the reference" if dashed else ""
        ax.plot(time, curve, markersize=3, linewidth=1.3, label=f"f0{who}", **how)
        bad = ~np.isfinite(value)
        high &= ~bad
        for which, y, what, marker in (
            (high, 0.96, f"above {MAX_F0:g} Hz", "^"),
            (bad, 0.04, "NaN or Inf", "X"),
        ):
            if which.any():
                most = f",\nup to {value[which].max():,.0f} Hz" if marker == "^" else ""
                label = f"{what}{who}:\n{which.sum()} of {len(value)} frames{most}"
                line = {"color": VERMILLION, "fillstyle": "none" if dashed else "full", "label": label}
                where = np.full(which.sum(), y)
                ax.plot(time[which], where, marker, transform=ax.get_xaxis_transform(), **line)
    longest = max(len(side["hift/f0"]) for side, _ in sides) / SPEECH.mel.frame_rate
    ax.set(ylabel="f0 (Hz)", ylim=(0, 1.15 * top or MAX_F0), xlim=(0, longest))
    titled(ax, trace.attrs.get("text", ""))
    seconds_axis(ax, trace)
    legend(ax)
    return ax


# ---- tokens


def tokens(
    trace: Trace, *, silent: Collection[int] | None = None, axes: Sequence[Axes] | None = None
) -> NDArray[np.object_]:
    """Draw the speech tokens over time, how sure the LM was of each, and how near to ending.

    Parameters
    ----------
    trace : Trace
        With `lm/drawn_token` or `lm/speech_token`.
    silent : collection of int
        Ids that sound like silence; those that the run noted unless given.
    axes : sequence of 3 Axes, optional

    Returns
    -------
    array (3,) of Axes
        Ids; entropy of each draw in nat; `ln p` of the likeliest speech token less that of the likeliest
        stop, below 0 where stopping was likelier. The last two need `lm/entropy` and `lm/logp`.

    Raises
    ------
    WorkbenchError
        When there are no tokens.
    """
    name = "lm/drawn_token" if "lm/drawn_token" in trace else "lm/speech_token"
    require(trace, name)
    ids = trace[name].numpy()
    quiet = np.isin(ids, list(trace.attrs.get("silent_tokens", ()) if silent is None else silent))
    again = np.append(False, ids[1:] == ids[:-1]) & ~quiet
    margin = _stop_margin(trace)
    axes = grid(axes, (3, 1), (8, 5.6), trace)
    rate = token_rate(trace)
    time = (np.arange(len(ids)) + 0.5) / rate
    for which, look, what in (
        (~quiet & ~again, SPEECH_TOKEN, "speech"),
        (again, REPEAT, "same as before"),
        (quiet, SILENT, "silent"),
    ):
        if which.any():
            label = f"{what}: {which.sum()}"
            axes[0].plot(time[which], ids[which], look.marker, color=look.color, markersize=4, label=label)
    _shade_runs(axes, quiet, rate)
    _curve(axes[1], _entropy(trace), rate, "lm/entropy was not recorded: save=wb.SUMMARY keeps it")
    _curve(axes[2], margin, rate, "lm/logp was not recorded: save='lm/logp' keeps it")
    if margin is not None:
        axes[2].axhline(0, color=VERMILLION, linewidth=1, linestyle="--", label="stop as likely")
    labels = ("token id", "entropy (nat)", "ln p(speech)\n- ln p(stop)")
    for ax, text in zip(axes, labels, strict=True):
        ax.set_ylabel(text, fontsize="small")
        ax.set_xlim(0, len(ids) / rate)
        legend(ax)
    kept = len(trace["lm/speech_token"]) if "lm/speech_token" in trace else len(ids)
    dropped = f" ({len(ids) - kept} silent draws were dropped)" if kept < len(ids) else ""
    titled(axes[0], trace.attrs.get("text", "") + dropped)
    seconds_axis(axes[0], trace, label="")
    axes[2].set_xlabel("seconds as drawn, before silences were shortened" if dropped else "seconds")
    return axes


def _entropy(trace: Trace) -> NDArray | None:
    if "lm/entropy" in trace or "lm/entropy" + SUFFIX in trace:
        return numbers(trace.statistics("lm/entropy")[:, STATS.index("mean")])
    return None


def _stop_margin(trace: Trace) -> NDArray | None:
    if "lm/logp" not in trace:
        return None
    logp, stops = trace["lm/logp"].double(), SPEECH.lm.n_special
    if logp.shape[1] <= stops:
        raise WorkbenchError(f"lm/logp has {logp.shape[1]} ids; expected {stops} stop ids after the speech's")
    return numbers(logp[:, :-stops].amax(1) - logp[:, -stops:].amax(1))


def _curve(ax: Axes, values: NDArray | None, rate: float, lacking: str) -> None:
    if values is None:
        note(ax, lacking)
        return
    ax.plot((np.arange(len(values)) + 0.5) / rate, values, color=BLUE, marker="o", markersize=3, linewidth=1)


def _shade_runs(axes: Sequence[Axes], quiet: NDArray, rate: float) -> None:
    """Shade runs of two and more silent tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], quiet, [False])).astype(int)))
    runs = [(start / rate, (end - start) / rate) for start, end in edges.reshape(-1, 2) if end - start > 1]
    for ax in axes if runs else ():
        name = f"silence, runs: {len(runs)}" if ax is axes[0] else "_"
        where = {"transform": ax.get_xaxis_transform(), "facecolor": (GREY, 0.25), "hatch": "//"}
        ax.broken_barh(runs, (0, 1), edgecolor=GREY, linewidth=0, label=name, **where)
