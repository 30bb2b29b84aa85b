"""Traces as a page can hold them: PCM16, a picture of the mel, f0, findings; the player without a kernel."""

import base64
import io
import json
import math
import wave
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.config import MelConfig
from workbench.speech.frontend.audio import log_mel, mel_centres, resample, to_pcm16
from workbench.trace.trace import Trace

MODULE = Path(__file__).with_name("player.js")
MEL = MelConfig()
FRAME = MEL.hop_length / MEL.sample_rate  # seconds
FLOOR = math.log(1e-5)  # `log_mel` clamps there
BLOCK = 0.4  # seconds, of ITU-R BS.1770
COLUMNS = ("kind", "start", "end", "score")
MOST_TRACES = 26  # they are called A to Z
MOST_FINDINGS = 500  # of a trace; more cannot be looked at
TICKS = {500: "500 Hz", 1000: "1 k", 2000: "2 k", 4000: "4 k", 8000: "8 k"}


class Tabular(Protocol):
    """Anything that becomes a table."""

    def to_frame(self) -> pd.DataFrame: ...


Findings = Tabular | pd.DataFrame | None


def player_data(
    traces: Sequence[Trace],
    names: Sequence[str] | None = None,
    findings: Findings | Sequence[Findings] = None,
    match_levels: bool = False,
    seconds: float = 60.0,
) -> dict:
    """Return what the page side of the player reads, ready for JSON; the arguments are those of `player`.

    Raises
    ------
    WorkbenchError
        Where a trace has no waveform, or names or findings do not fit the traces.
    """
    if not 1 <= len(traces) <= MOST_TRACES:
        raise WorkbenchError(f"{len(traces)} traces to play; expected 1 to {MOST_TRACES}")
    if seconds <= 0:
        raise WorkbenchError(f"seconds={seconds} of sound to show; expected more than 0")
    if findings is None or isinstance(findings, pd.DataFrame) or hasattr(findings, "to_frame"):
        findings = [findings] + [None] * (len(traces) - 1)
    names = [_name(trace) for trace in traces] if names is None else [str(name) for name in names]
    for what, given in (("names", names), ("findings", findings)):
        if len(given) != len(traces):
            raise WorkbenchError(f"{len(given)} {what} for {len(traces)} traces; expected one each")
    mels = [_mel(trace, seconds) for trace in traces]
    low, high = _range([mel for mel, _ in mels])
    centres = mel_centres(len(mels[0][0]), MEL.sample_rate / 2)
    data = {
        "traces": [],
        "warnings": [],
        "bins": len(centres),
        "ticks": [[int((centres - hz).abs().argmin()), text] for hz, text in TICKS.items()],
        "mel_range": [low, high],
    }
    for i, (trace, (mel, origin)) in enumerate(zip(traces, mels, strict=True)):
        sound, changed = _sound(trace, seconds)
        found, left_out = _findings(findings[i], seconds)
        image = {"mel": _picture(mel, low, high), "mel_from": origin, "f0": _f0(trace, seconds)}
        data["traces"].append({"name": names[i], "findings": found} | sound | image)
        data["warnings"] += [f"{_letter(i)} \u00b7 {names[i]}: {words}" for words in changed + left_out]
    if match_levels:
        _match(data["traces"])
    return data


def static_player(data: dict) -> str:
    """Return a piece of HTML that plays `player_data` without a kernel, a network or a file beside it.

    The ES module lies inline, as `<script type="module">`: it runs from file://, in an exported notebook and
    in a report, where an address made of a Blob may be forbidden, and takes the height that it needs, which
    an iframe cannot. A shadow root keeps the page's styles and other players out. Sound and picture lie
    outside the script, so that `<audio>` and `<img>` are left where scripts do not run.
    """
    mark = uuid4().hex
    light = [{key: trace[key] for key in trace if key not in ("wav", "mel")} for trace in data["traces"]]
    # In JSON "<" stands in strings alone, where it may be written so that no name can end the script.
    literal = json.dumps(data | {"traces": light}, allow_nan=False).replace("<", "\\u003c")
    figures = "".join(_figure(_letter(i), trace) for i, trace in enumerate(data["traces"]))
    warnings = "".join(f"<p>\u26a0 {escape(warning)}</p>" for warning in data["warnings"])
    return (
        f'<div class="workbench-player" data-player="{mark}">{warnings}{figures}</div>\n'
        f'<script type="module">\n{MODULE.read_text(encoding="utf-8")}\nwake("{mark}", {literal});\n</script>'
    )


def _figure(letter: str, trace: dict) -> str:
    name, found = escape(trace["name"]), "; ".join(escape(found["text"]) for found in trace["findings"])
    peak = "silent" if trace["peak_db"] is None else f"peak {trace['peak_db']:.1f} dBFS"
    about = f"{trace['rate']} Hz, {peak}, {trace['clipped']} clipped"
    return (
        '<figure style="margin:8px 0;max-width:1100px">'
        f"<figcaption>{letter} \u00b7 {name} ({about}){': ' if found else ''}{found}</figcaption>"
        f'<img alt="mel of {name}" src="{trace["mel"]}" style="width:100%;height:120px;display:block">'
        f'<audio controls preload="none" aria-label="{name}" src="{trace["wav"]}" style="width:100%"></audio>'
        "</figure>"
    )


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _name(trace: Trace) -> str:
    return trace.attrs.get("tag") or trace.attrs.get("text") or trace.attrs.get("source") or "trace"


def _sound(trace: Trace, seconds: float) -> tuple[dict, list[str]]:
    """Return the waveform at its own level, its figures, and what had to be changed."""
    rate = int(trace.sample_rate)
    wav = _wav(trace).double().numpy()
    warnings = []
    if len(wav) > seconds * rate:
        warnings.append(f"the first {seconds:g} of {len(wav) / rate:.1f} s are here; seconds=... holds more")
        wav = wav[: int(seconds * rate)]
    missing, beyond = int(np.isnan(wav).sum()), int((np.abs(wav) > 1).sum())
    if missing:
        warnings.append(f"NaN was set to 0 ({missing} of {len(wav)} samples)")
    if beyond:
        most = np.nanmax(np.abs(wav))
        warnings.append(
            f"what is beyond \u00b11 was clipped ({beyond} of {len(wav)} samples, up to {most:.3g})"
        )
    wav = np.clip(np.nan_to_num(wav, posinf=2.0, neginf=-2.0), -1, 1)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(to_pcm16(wav).astype("<i2").tobytes())
    figures = {"peak_db": _decibel(np.abs(wav).max()), "rms_db": _decibel(math.sqrt(np.square(wav).mean()))}
    figures |= {"lufs": _loudness(wav, rate), "gain_db": 0.0, "clipped": beyond, "rate": rate}
    return figures | {"wav": _address("audio/wav", file.getvalue())}, warnings


def _wav(trace: Trace) -> Tensor:
    if "hift/wav" not in trace or not len(trace.wav):
        raise WorkbenchError(
            f"{trace!r} has no waveform; expected hift/wav with samples: run it to the end, or replay it"
        )
    return trace.wav


def _decibel(level: float) -> float | None:
    return round(20 * math.log10(level), 2) if level > 0 else None


def _loudness(wav: np.ndarray, rate: int) -> float | None:
    """Return LUFS (ITU-R BS.1770), None of silence; what is shorter than a block is one."""
    from pyloudnorm import Meter  # slow to import

    wav = np.pad(wav, (0, max(0, math.ceil(BLOCK * rate) + 1 - len(wav))))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(Meter(rate, block_size=BLOCK).integrated_loudness(wav))
    return round(value, 2) if math.isfinite(value) else None


def _match(traces: list[dict]) -> None:
    """Turn all down to the least loud one: nothing can clip that did not."""
    heard = [trace["lufs"] for trace in traces if trace["lufs"] is not None]
    for trace in traces:
        if trace["lufs"] is not None:
            trace["gain_db"] = round(min(heard) - trace["lufs"], 2)


def _mel(trace: Trace, seconds: float) -> tuple[Tensor, str]:
    """Return the mel (M, T) that was vocoded, or else that of the waveform; and which it is."""
    frames = math.ceil(seconds / FRAME)
    if "flow/mel" in trace and trace["flow/mel"].numel():
        return trace["flow/mel"][:, :frames].float(), "flow/mel"
    rate = int(trace.sample_rate)
    wav = _wav(trace)[: math.ceil(seconds * rate)].float().nan_to_num(posinf=1, neginf=-1).clamp(-1, 1)
    wav = resample(wav, rate, MEL.sample_rate)
    return log_mel(F.pad(wav, (0, max(0, MEL.n_fft - len(wav)))), MEL)[0], "the waveform"


def _range(mels: Sequence[Tensor]) -> tuple[float, float]:
    """Return one range for all, so that what is brighter is louder."""
    values = torch.cat([mel.flatten() for mel in mels])
    values = values[values.isfinite()]
    if not len(values) or values.min() == values.max():
        return FLOOR, 0.0
    return values.min().item(), values.max().item()


def _picture(mel: Tensor, low: float, high: float) -> str:
    from matplotlib.image import imsave  # slow to import

    file = io.BytesIO()
    imsave(file, mel.numpy(), vmin=low, vmax=high, cmap="magma", origin="lower", format="png")
    return _address("image/png", file.getvalue())


def _f0(trace: Trace, seconds: float) -> list[float]:
    """Return Hz of every frame, 0 where there is none."""
    if "hift/f0" not in trace:
        return []
    hz = trace["hift/f0"][: math.ceil(seconds / FRAME)].double().nan_to_num(posinf=0, neginf=0)
    return [round(value, 1) for value in hz.tolist()]


def _findings(found: Findings, seconds: float) -> tuple[list[dict], list[str]]:
    if found is None:
        return [], []
    table = found if isinstance(found, pd.DataFrame) else found.to_frame()
    table = table.reset_index()
    if lacking := [column for column in COLUMNS if column not in table]:
        raise WorkbenchError(
            f"findings have the columns {', '.join(map(str, table))}; expected {', '.join(COLUMNS)} "
            f"(seconds), {', '.join(lacking)} is missing"
        )
    table = table.dropna(subset=["start", "end"])
    table = table[table["start"] < seconds].sort_values("start", kind="stable")
    warnings = []
    if len(table) > MOST_FINDINGS:
        warnings.append(f"the first {MOST_FINDINGS} of {len(table)} findings are here")
    rows = table.head(MOST_FINDINGS)[list(COLUMNS)].itertuples(index=False, name=None)
    return [_finding(*row) for row in rows], warnings


def _finding(kind: str, start: float, end: float, score: float) -> dict:
    text = f"{kind} {start:.2f} s" + ("" if pd.isna(score) else f" ({score:.3g})")
    return {"kind": str(kind), "start": float(start), "end": float(max(start, end)), "text": text}


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
