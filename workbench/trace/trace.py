"""What a run leaves behind: fields by name, and what they came from."""

import json
import os
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files import atomic_write
from workbench.trace.record import by_region, summarise
from workbench.trace.schema import FIELDS, LOOPS, REGIONS, SAMPLE_RATE, STATS, SUFFIX, VERSION, dims_of

KEY = "workbench_trace"  # the one attribute of the file
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_ENTRIES = 100_000  # knots, steps or draws: a file may claim any number of empty ones
ATTRS = {  # what other code relies on, and the kind it has to be of
    **dict.fromkeys(("prompt_frames", "first_step"), int),
    **dict.fromkeys(("text", "mode", "tag", "source"), str),
    **dict.fromkeys(("options", "timings", "checkpoint", "prompt", "shapes", "half_units"), dict),
    **dict.fromkeys(("notes", "lines", "unmapped", "seams", "silent_tokens"), list),
    "sample_rate": (int, float),
}
LENGTHS = {"region": REGIONS, "stat": STATS}  # dimensions of one length, always the last


class Trace(Mapping[str, Tensor]):
    """Fields of one run by name, on the CPU, in causal order.

    Parameters
    ----------
    data : mapping of str to Tensor
        Fields of `workbench.trace.schema.FIELDS`, without batch dimension, and their `.stats`. Floats keep
        their precision, integers become int64.
    attrs : mapping of str to Any
        What JSON can hold: options, text, sample rate, seconds spent in each stage and the like.

    Raises
    ------
    WorkbenchError
        When a field is not in the schema, or has another number of dimensions, or no such numbers in it.
    """

    def __init__(self, data: Mapping[str, Tensor], attrs: Mapping[str, Any]) -> None:
        self.data = {name: _numbers(name, value.detach().cpu()) for name, value in data.items()}
        self.attrs = dict(attrs)
        for name, value in self.data.items():
            dims = dims_of(name)
            if dims is None:
                raise WorkbenchError(f"{name!r} is no field of a trace; expected one of {', '.join(FIELDS)}")
            fixed = [len(LENGTHS[dim]) for dim in dims if dim in LENGTHS]
            if value.ndim != len(dims) or list(value.shape[len(dims) - len(fixed) :]) != fixed:
                what = ", ".join(f"{d}: {len(LENGTHS[d])}" if d in LENGTHS else d for d in dims)
                raise WorkbenchError(f"{name} has shape {tuple(value.shape)}; expected ({what})")
            if dims[0] in LOOPS and len(value) > MOST_ENTRIES:
                raise WorkbenchError(f"{name} has {len(value)} entries; expected {MOST_ENTRIES} at most")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.data:
            raise KeyError(f"{name!r} was not recorded; this trace has {', '.join(self.data)}")
        return self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    # ---- what is asked most

    @property
    def wav(self) -> Tensor:
        """Waveform (N,)."""
        return self["hift/wav"]

    @property
    def sample_rate(self) -> int:
        """Samples per second; the model's own where the trace does not say."""
        return self.attrs.get("sample_rate", SAMPLE_RATE)

    @property
    def seconds(self) -> float:
        """Length of the sound; 0 for a run that was stopped before it."""
        return len(self.data.get("hift/wav", ())) / self.sample_rate

    @property
    def rtf(self) -> float:
        """Compute seconds per second of sound; lower is faster."""
        return sum(self.attrs.get("timings", {}).values()) / max(self.seconds, 1e-9)

    @property
    def prompt_frames(self) -> int:
        """Where in `frame` the target begins."""
        return self.attrs.get("prompt_frames", 0)

    # ---- looking at parts

    def dims(self, name: str) -> tuple[str, ...]:
        """Names of a field's dimensions, such as ("knot", "mel", "frame")."""
        self[name]
        return dims_of(name)

    def select(self, name: str, region: str | None = None, **where: int | slice) -> Tensor:
        """Return part of a field by the names of its dimensions.

        Parameters
        ----------
        name : str
            Such as "flow/x".
        region : {"prompt", "target", "whole"}, optional
            Frames of the prompt, or those after it.
        **where : int or slice
            Index along a dimension: `knot=3`, `mel=slice(0, 20)`. A number drops the dimension.

        Raises
        ------
        WorkbenchError
            When the field has no such dimension or region, or the index is outside.
        """
        value, dims = self[name], self.dims(name)
        if region is not None:
            if region not in REGIONS or "frame" not in dims:
                raise WorkbenchError(
                    f"region is {region!r} of {name} ({', '.join(dims)}); expected prompt, target or whole, "
                    "of a field with frames"
                )
            cut = self.prompt_frames
            value = {"prompt": value[..., :cut], "target": value[..., cut:], "whole": value}[region]
        for dim in where:
            if dim not in dims:
                raise WorkbenchError(f"{name} has no dimension {dim!r}; it has {', '.join(dims)}")
        try:
            return value[tuple(where.get(dim, slice(None)) for dim in dims)]
        except IndexError as error:
            raise WorkbenchError(
                f"{name} is {tuple(value.shape)} along {', '.join(dims)}: {error}"
            ) from error

    def to_frame(self) -> pd.DataFrame:
        """Return one row a field: dimensions, shape, unit, and `STATS` over all of it.

        Where statistics alone were kept they are taken over the entries that have any.
        """
        rows = []
        for name, value in self.data.items():
            field = FIELDS[name.removesuffix(SUFFIX)]
            row = {"field": name, "dims": ", ".join(dims_of(name)), "shape": tuple(value.shape)}
            row |= {"dtype": str(value.dtype).removeprefix("torch."), "unit": field.unit}
            stats = over_all(name, value) if name.endswith(SUFFIX) else summarise(value)
            row |= dict(zip(STATS, stats.tolist(), strict=True))
            rows.append(row)
        return pd.DataFrame(rows).set_index("field")

    def statistics(self, name: str) -> Tensor:
        """Return what `name.stats` holds, worked out from the field where only that was kept."""
        kept, dims = self.data.get(name + SUFFIX), dims_of(name + SUFFIX) or ()
        if kept is not None:
            return kept
        x, cut = self[name], self.prompt_frames

        def sums(y: Tensor) -> Tensor:
            return by_region(y, cut) if "region" in dims else summarise(y)

        return torch.stack([sums(y) for y in x]) if dims[0] in LOOPS else sums(x)

    def stats(self, name: str) -> pd.DataFrame:
        """Return `STATS` of a field by step (or knot or draw) and region.

        They are worked out from the field, or read where a run kept statistics alone; NaN where nobody
        noted them.
        """
        kept, dims = self.statistics(name), dims_of(name + SUFFIX) or ()
        frame = pd.DataFrame(kept.reshape(-1, len(STATS)).numpy(), columns=list(STATS))
        frame["nonfinite"] = frame["nonfinite"].astype("Int64")
        labels = [REGIONS if dim == "region" else range(n) for dim, n in zip(dims, kept.shape, strict=True)]
        if len(dims) > 1:
            frame.index = pd.MultiIndex.from_product(labels[:-1], names=dims[:-1])
        return frame

    # ---- on disk

    def save(self, path: str | os.PathLike) -> Path:
        """Write one safetensors file; it appears whole or not at all."""
        path = Path(path)
        header = {KEY: json.dumps({"version": VERSION, "attrs": self.attrs})}
        # Copies, because two fields may share memory, which the format does not allow.
        data = {name: value.clone(memory_format=torch.contiguous_format) for name, value in self.data.items()}
        with atomic_write(path) as draft:
            save_file(data, draft, metadata=header)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Trace":
        """Read a file that `save` wrote; needs no model and no GPU.

        Raises
        ------
        WorkbenchError
            When it is missing, truncated, no trace, or one of another version.
        """
        path = Path(path)
        if not path.is_file():
            raise WorkbenchError(f"no file {path}; expected a trace that Trace.save wrote")
        try:
            with safe_open(path, framework="pt") as file:
                attrs = _attrs((file.metadata() or {}).get(KEY), path)
            data = load_file(path)
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise WorkbenchError(
                f"{path.name} cannot be read as safetensors ({error}); it is truncated or something else"
            ) from error
        order = list(FIELDS)
        if strange := [name for name in data if dims_of(name) is None]:
            raise WorkbenchError(
                f"{path.name} holds {', '.join(strange[:5])}, which is no field of a trace; expected fields "
                f"such as {', '.join(order[-4:])}"
            )
        ranked = sorted(data.items(), key=lambda pair: order.index(pair[0].removesuffix(SUFFIX)))
        return cls(dict(ranked), attrs)

    # ---- how it shows itself

    def __repr__(self) -> str:
        return f"Trace({self.attrs.get('text', '')!r:.60}, {self.seconds:.2f} s, {len(self)} fields)"

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(float_format="{:.4g}".format, na_rep="", border=0)
        return f"<div><b>{escape(repr(self))}</b>{table}</div>"


def whole_stats(trace: Trace, name: str, index: int | None = None) -> Tensor:
    """Return `STATS` of a field, or of one entry of it, over all its frames, float64 (6,).

    They are worked out from the field, or read where statistics alone were kept.
    """
    if name in trace:
        return summarise(trace[name] if index is None else trace[name][index])
    kept = trace[name + SUFFIX]
    return of_the_whole(name + SUFFIX, kept if index is None else kept[index])


def over_all(name: str, stats: Tensor) -> Tensor:
    """Return `STATS` (6,) over all entries of a field's kept statistics that have any; NaN where none has."""
    table = of_the_whole(name, stats).reshape(-1, len(STATS)).double()
    there = ~table.isnan()
    low = torch.where(there, table, torch.inf).amin(0)
    high = torch.where(there, table, -torch.inf).amax(0)
    mean = table.nanmean(0)
    rms, count = table.square().nanmean(0).sqrt(), torch.nansum(table, 0)
    five = torch.stack([low[0], high[1], mean[2], mean[3], rms[4], count[5]])
    return torch.where(there.any(0), five, torch.nan)


def of_the_whole(name: str, stats: Tensor) -> Tensor:
    """Return kept statistics without those of prompt and target, (6,) or an entry each (N, 6)."""
    return stats[..., REGIONS.index("whole"), :] if "region" in dims_of(name) else stats


def _numbers(name: str, value: Tensor) -> Tensor:
    if value.dtype in FLOATS or value.dtype == torch.int64:
        return value
    if value.is_floating_point() or value.is_complex():
        kind = str(value.dtype).removeprefix("torch.")
        raise WorkbenchError(f"{name} is {kind}; expected float16, bfloat16, float32, float64 or integers")
    return value.long()


def _attrs(text: str | None, path: Path) -> dict[str, Any]:
    """Read the file's attribute."""
    if text is None:
        raise WorkbenchError(
            f"{path.name} is safetensors but no trace: it lacks the attribute {KEY!r}. "
            "A dump of another implementation needs a mapping"
        )
    try:
        about = json.loads(text)
        version, attrs = about["version"], dict(about["attrs"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WorkbenchError(f"{path.name}: the attribute {KEY!r} is not what Trace.save writes") from error
    if version != VERSION:
        raise WorkbenchError(
            f"{path.name} is a trace of schema version {version!r}; this workbench reads {VERSION}. "
            "Record it again, or open it with the workbench that wrote it"
        )
    for name, kind in ATTRS.items():
        value = attrs.get(name)
        if name in attrs and not isinstance(value, kind):
            raise WorkbenchError(f"{path.name}: the attribute {name} is {value!r:.60}, of no kind it can be")
    if not attrs.get("sample_rate", 1) > 0 or not 0 <= attrs.get("prompt_frames", 0) < 2**31:
        raise WorkbenchError(f"{path.name}: sample_rate or prompt_frames is a number that it cannot be")
    return attrs
