"""Traces in the form that a page can hold: PCM16 sound as FLAC, the mel as a PNG, the rest as JSON."""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.diagnose.glitches.wave_stats import BLOCK_S, loudness
from workbench.diagnose.sounds.alignment import SAMPLES_ALIGN
from workbench.errors import WorkbenchError
from workbench.speech.config import RELEASED
from workbench.speech.frontend.audio import flac_file, log_mel, mel_centres, resample
from workbench.trace.schema import FRAME_RATE, TOKEN_RATE
from workbench.trace.trace import Trace

MEL = RELEASED.mel
LIMIT = RELEASED.hift.audio_limit  # of full scale; the vocoder clips there
VOICED_ABOVE = RELEASED.hift.nsf_voiced_threshold  # Hz; the vocoder takes lower values as unvoiced
COLORS = "viridis"  # as of the figures
RATES = (3000, 384_000)  # Hz that browsers can decode
MAX_TEXT = 500  # letters of the text below the tokens
QUIETEST_MEL = math.log(1e-5)  # ln; `log_mel` clamps there
FINDING_COLUMNS = ("kind", "start", "end", "score")
MAX_TRACES = 26  # they are called A to Z
MAX_FINDINGS = 500  # of a trace, so that the page stays small
TICKS = {500: "500 Hz", 1000: "1 k", 2000: "2 k", 4000: "4 k", 8000: "8 k"}  # labels of the mel axis


class Tabular(Protocol):
    """Any object with a table, such as the result of `find_glitches`."""

    def to_frame(self) -> pd.DataFrame: ...


Findings = Tabular | pd.DataFrame | None


def player_data(
    traces: Sequence[Trace],
    names: Sequence[str] | None = None,
    findings: Findings | Sequence[Findings] = None,
    match_levels: bool = False,
    seconds: float = 60.0,
) -> dict:
    """Return the payload of the player's page, ready for JSON; the arguments are those of `player`.

    Returns
    -------
    dict
        `traces` (a dict each, see data.js), `warnings` (sentences), `bins` of the mel, `ticks` of its axis
        (bin, label), `mel_range` (ln), `frame_seconds`, `token_seconds` and the numbers that data.js names.

    Raises
    ------
    WorkbenchError
        When a trace has no waveform, or names or findings do not fit the traces.
    """
    if not 1 <= len(traces) <= MAX_TRACES:
        raise WorkbenchError(f"{len(traces)} traces to play; expected 1 to {MAX_TRACES}")
    if seconds <= 0:
        raise WorkbenchError(f"seconds={seconds} of sound to show; expected more than 0")
    is_single = findings is None or isinstance(findings, pd.DataFrame) or hasattr(findings, "to_frame")
    if is_single:
        findings = [findings] + [None] * (len(traces) - 1)
    if names is None:
        names = [_default_name(trace) for trace in traces]
    for what, given in (("names", names), ("findings", findings)):
        if len(given) != len(traces):
            raise WorkbenchError(f"{len(given)} {what} for {len(traces)} traces; expected one each")
    mels = [_mel(trace, seconds) for trace in traces]
    low, high = _value_range([mel for mel, _ in mels])
    centres = mel_centres(MEL.n_mels, MEL.sample_rate / 2)  # Hz (M,)
    data = {
        "traces": [],
        "warnings": [],
        "bins": len(centres),
        "ticks": [[int((centres - hz).abs().argmin()), text] for hz, text in TICKS.items()],
        "mel_range": [low, high],
        "frame_seconds": 1 / FRAME_RATE,
        "token_seconds": 1 / TOKEN_RATE,
        "limit": LIMIT,
        "min_correlation": SAMPLES_ALIGN,
        "silent_tokens": list(RELEASED.silent_tokens),
        "colours": base64.b64encode(_palette()).decode(),
    }
    for i, trace in enumerate(traces):
        name = str(names[i])
        mel, mel_source = mels[i]
        sound, sound_warnings = _sound(trace, seconds)
        rows, findings_warnings = _findings(findings[i], seconds)
        picture = {"mel": _png(mel, low, high), "mel_from": mel_source, "f0": _f0(trace, seconds)}
        words = {"name": name, "text": str(trace.attrs.get("text") or "")[:MAX_TEXT], "findings": rows}
        data["traces"].append(words | {"tokens": _tokens(trace, seconds)} | sound | picture)
        for warning in sound_warnings + findings_warnings:
            data["warnings"].append(f"{letter_of(i)} \u00b7 {name}: {warning}")
    if match_levels:
        _match_levels(data["traces"])
    return data


def letter_of(index: int) -> str:
    """Return the letter by which the player calls a trace: A for the first."""
    return chr(ord("A") + index)


def _default_name(trace: Trace) -> str:
    attrs = trace.attrs
    return str(attrs.get("tag") or attrs.get("text") or attrs.get("source") or "trace")


# ---- sound


def _sound(trace: Trace, seconds: float) -> tuple[dict, list[str]]:
    """Return the waveform at its own level with its measures, and warnings of what had to be changed."""
    rate = int(trace.sample_rate)
    whole = _waveform(trace)
    warnings = []
    if len(whole) > seconds * rate:
        total = len(whole) / rate
        warnings.append(f"the first {seconds:g} of {total:.1f} s are included; pass seconds=... for more")
        whole = whole[: int(seconds * rate)]
    wav = whole.to(torch.float64, copy=True).numpy()  # changed in place below: five minutes are 58 MB
    n_nan = int(np.isnan(wav).sum())
    n_clipped = int((np.abs(wav.astype(np.float32)) >= np.float32(LIMIT)).sum())  # as the vocoder's own type
    n_beyond = int((np.abs(wav) > 1).sum())
    if n_nan:
        warnings.append(f"NaN was set to 0 ({n_nan} of {len(wav)} samples)")
    if n_beyond:
        peak = np.nanmax(np.abs(wav))
        warnings.append(
            f"samples beyond \u00b11 were clipped ({n_beyond} of {len(wav)} samples, up to {peak:.3g})"
        )
    np.nan_to_num(wav, copy=False, posinf=2.0, neginf=-2.0)
    np.clip(wav, -1, 1, out=wav)
    if not RATES[0] <= rate <= RATES[1]:
        played = min(max(rate, RATES[0]), RATES[1])
        warnings.append(
            f"browsers cannot play {rate} Hz; what is heard and drawn is resampled to {played} Hz"
        )
        wav = resample(torch.from_numpy(wav), rate, played).clamp(-1, 1).numpy()
        rate = played
    sound = {
        "peak_db": _decibels(max(wav.max(), -wav.min())),
        "rms_db": _decibels(math.sqrt(np.dot(wav, wav) / len(wav))),
        "lufs": _lufs(wav, rate),
        "gain_db": 0.0,
        "clipped": n_clipped,
        "rate": rate,
        "seconds": len(wav) / rate,
        "id": trace_id(trace),
        "sound": _data_address("audio/flac", flac_file(wav, rate)),
    }
    return sound, warnings


def trace_id(trace: Trace) -> str:
    """Return what names a waveform on a page: players, figures and widgets of equal ones move together.

    They send and follow the event `workbench-view` of the document, see web/sync.js.
    """
    return hashlib.sha256(_waveform(trace).contiguous().numpy().tobytes()).hexdigest()[:16]


def _waveform(trace: Trace) -> Tensor:
    if "hift/wav" not in trace or not len(trace.wav):
        raise WorkbenchError(
            f"{trace!r} has no waveform; expected hift/wav with samples: run it to the end, or replay it"
        )
    return trace.wav


def _decibels(level: float) -> float | None:
    """Return a level of full scale in dB; None of silence."""
    return round(20 * math.log10(level), 2) if level > 0 else None


def _lufs(wav: np.ndarray, rate: int) -> float | None:
    """Return the integrated loudness, None of silence. Less than one block is filled up with silence."""
    block = math.ceil(BLOCK_S * rate) + 1
    value = loudness(wav if len(wav) >= block else np.pad(wav, (0, block - len(wav))), rate)
    return round(value, 2) if math.isfinite(value) else None


def _match_levels(traces: list[dict]) -> None:
    """Set gains that turn all traces down to the least loud one, so that none can clip."""
    audible = [trace for trace in traces if trace["lufs"] is not None]
    target = min((trace["lufs"] for trace in audible), default=0.0)
    for trace in audible:
        trace["gain_db"] = round(target - trace["lufs"], 2)


# ---- mel and f0


def _mel(trace: Trace, seconds: float) -> tuple[Tensor, str]:
    """Return the recorded mel (M, T), or else the mel of the waveform; and which of them it is."""
    frames = math.ceil(seconds * FRAME_RATE)
    if "flow/mel" in trace and trace["flow/mel"].numel():
        return trace["flow/mel"][:, :frames].float(), "flow/mel"
    rate = int(trace.sample_rate)
    wav = _waveform(trace)[: math.ceil(seconds * rate)].float()
    wav = wav.nan_to_num(posinf=1, neginf=-1).clamp(-1, 1)
    wav = resample(wav, rate, MEL.sample_rate)
    wav = F.pad(wav, (0, max(0, MEL.n_fft - len(wav))))  # at least one window
    return log_mel(wav, MEL)[0], "the waveform"


def _value_range(mels: Sequence[Tensor]) -> tuple[float, float]:
    """Return the least and the largest value of all mels: one range, so that brighter means louder.

    Values below the quietest of a log-mel, as of a run with one step, would make the others look alike.
    """
    values = torch.cat([mel.flatten() for mel in mels])
    values = values[values.isfinite()]
    if not len(values) or values.min() == values.max() or values.max() <= QUIETEST_MEL:
        return QUIETEST_MEL, 0.0
    return max(values.min().item(), QUIETEST_MEL), values.max().item()


def _png(mel: Tensor, low: float, high: float) -> str:
    """Return the mel as a picture of one byte a pixel; low bins are at the bottom."""
    from PIL import Image

    share = (mel.nan_to_num(nan=low, posinf=high, neginf=low).double() - low) / (high - low)
    image = Image.fromarray((share.flip(0).clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    image.putpalette(_palette())
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return _data_address("image/png", file.getvalue())


def _palette() -> bytes:
    """Return red, green and blue of 256 colours."""
    from matplotlib import colormaps  # slow to import

    return (colormaps[COLORS](np.arange(256), bytes=True)[:, :3]).tobytes()


def _f0(trace: Trace, seconds: float) -> list[float]:
    """Return f0 in Hz of every frame; 0 where the vocoder takes it as unvoiced, or it is not finite."""
    if "hift/f0" not in trace:
        return []
    frames = math.ceil(seconds * FRAME_RATE)
    hz = trace["hift/f0"][:frames].double().nan_to_num(posinf=0, neginf=0)
    hz[hz <= VOICED_ABOVE] = 0
    return [round(value, 1) for value in hz.tolist()]


def _tokens(trace: Trace, seconds: float) -> list[int]:
    """Return the ids of the speech tokens from which the sound was made; empty where none were recorded."""
    if "lm/speech_token" not in trace:
        return []
    return trace["lm/speech_token"].flatten()[: math.ceil(seconds * TOKEN_RATE)].tolist()


# ---- findings


def _findings(found: Findings, seconds: float) -> tuple[list[dict], list[str]]:
    """Return the findings in order of time, and a warning when there are too many."""
    if found is None:
        return [], []
    table = found if isinstance(found, pd.DataFrame) else found.to_frame()
    table = table.reset_index()
    missing = [column for column in FINDING_COLUMNS if column not in table]
    if missing:
        raise WorkbenchError(
            f"findings have the columns {', '.join(map(str, table))}; expected {', '.join(FINDING_COLUMNS)} "
            f"(seconds), {', '.join(missing)} is missing"
        )
    table = table.dropna(subset=["start", "end"])
    table = table[table["start"] < seconds].sort_values("start", kind="stable")
    warnings = []
    if len(table) > MAX_FINDINGS:
        warnings.append(f"the first {MAX_FINDINGS} of {len(table)} findings are included")
    rows = table.head(MAX_FINDINGS)[list(FINDING_COLUMNS)]
    return [_finding(*row) for row in rows.itertuples(index=False, name=None)], warnings


def _finding(kind: str, start: float, end: float, score: float) -> dict:
    score_text = "" if pd.isna(score) else f" ({score:.3g})"
    return {
        "kind": str(kind),
        "start": float(start),
        "end": float(max(start, end)),
        "text": f"{kind} {start:.2f} s{score_text}",
    }


def _data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
