"""`Trace`: the record of one run, fields by name with attributes, as one file on disk."""

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

from workbench.errors import WorkbenchError, first_line
from workbench.files import about_address, atomic_write
from workbench.tables import table_html
from workbench.trace.attributes import KEY, read_attributes
from workbench.trace.record import in_causal_order, summarise, summarise_regions
from workbench.trace.schema import (
    FIELDS,
    LOOPS,
    REGIONS,
    SAMPLE_RATE,
    SOUND_SUFFIXES,
    STATS,
    SUFFIX,
    TAP,
    VERSION,
    dims_of,
)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_COUNT = 2**53  # of values that are not finite; a larger number is no count
MAX_ENTRIES = 100_000  # knots, steps or draws; a hostile file can claim any number of empty ones
LENGTHS = {"region": REGIONS, "stat": STATS}  # dimensions of fixed length; they always come last


class Trace(Mapping[str, Tensor]):
    """Fields of one run by name, on the CPU, in causal order.

    Parameters
    ----------
    data : mapping of str to Tensor
        Fields of `workbench.trace.schema.FIELDS`, without batch dimension, and their `.stats`. Floats keep
        their precision, integers and ids become int64.
    attrs : mapping of str to Any
        Values that JSON can hold: options, text, sample rate, seconds spent in each stage and the like.
    taps : mapping of str to Tensor, optional
        What submodules of a stage returned, such as "flow/0/transformer_blocks.3" at step 0 of the ODE;
        `bisect` reads them. With their batch dimension.

    Raises
    ------
    WorkbenchError
        When a field is not in the schema, or has another number of dimensions or another kind of numbers.

    Examples
    --------
    A trace of a run:

    >>> trace["flow/x"].shape == (len(trace["flow/t"]), 80, trace["flow/mu"].shape[1])
    True
    >>> trace.dims("flow/x")
    ('knot', 'mel', 'frame')
    >>> trace.select("flow/x", knot=-1, region="target").equal(trace["flow/mel"])
    True

    A trace of tensors from elsewhere:

    >>> import torch
    >>> wb.Trace({"flow/mel": torch.zeros(80, 50)}, {"text": "silence"})
    Trace('silence', 0.00 s, 1 fields)
    """

    def __init__(
        self, data: Mapping[str, Tensor], attrs: Mapping[str, Any], taps: Mapping[str, Tensor] | None = None
    ) -> None:
        self.data = {name: _numbers(name, value.detach().cpu()) for name, value in data.items()}
        self.attrs = dict(attrs)
        self.taps = {name: _numbers(name, value.detach().cpu()) for name, value in (taps or {}).items()}
        for name, value in self.data.items():
            dims = dims_of(name)
            if dims is None:
                raise WorkbenchError(
                    f"{name!r} is not a field of a trace; expected one of {', '.join(FIELDS)}"
                )
            fixed = [len(LENGTHS[dim]) for dim in dims if dim in LENGTHS]
            if value.ndim != len(dims) or list(value.shape[len(dims) - len(fixed) :]) != fixed:
                expected = [f"{dim}: {len(LENGTHS[dim])}" if dim in LENGTHS else dim for dim in dims]
                raise WorkbenchError(
                    f"{name} has shape {tuple(value.shape)}; expected ({', '.join(expected)})"
                )
            if dims[0] in LOOPS and len(value) > MAX_ENTRIES:
                raise WorkbenchError(f"{name} has {len(value)} entries; expected {MAX_ENTRIES} at most")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.data:
            raise KeyError(f"{name!r} was not recorded; this trace has {', '.join(self.data)}")
        return self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    # ---- shortcuts

    @property
    def wav(self) -> Tensor:
        """Waveform (N,)."""
        return self["hift/wav"]

    @property
    def sample_rate(self) -> int:
        """Samples per second; the released model's where the trace does not state it."""
        return self.attrs.get("sample_rate", SAMPLE_RATE)

    @property
    def seconds(self) -> float:
        """Length of the waveform; 0 for a run that stopped before the vocoder."""
        return len(self.data.get("hift/wav", ())) / self.sample_rate

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of computing per second of audio; lower is faster."""
        compute_seconds = sum(self.attrs.get("timings", {}).values())
        return compute_seconds / max(self.seconds, 1e-9)  # no division by 0 where there is no audio

    @property
    def prompt_frames(self) -> int:
        """Number of prompt frames: the index along `frame` at which the target begins."""
        return self.attrs.get("prompt_frames", 0)

    # ---- parts and statistics

    def dims(self, name: str) -> tuple[str, ...]:
        """Return the names of a field's dimensions, such as ("knot", "mel", "frame")."""
        self[name]  # a KeyError for a field that was not recorded
        return dims_of(name)

    def select(self, name: str, region: str | None = None, **where: int | slice) -> Tensor:
        """Return a part of a field, by the names of its dimensions.

        Parameters
        ----------
        name : str
            Such as "flow/x".
        region : {"prompt", "target", "whole"}, optional
            Frames of the prompt, those after it, or all.
        **where : int or slice
            Index along a dimension: `knot=3`, `mel=slice(0, 20)`. A number drops the dimension.

        Raises
        ------
        WorkbenchError
            When the field has no such dimension or region, or the index is out of range.
        """
        value, dims = self[name], self.dims(name)
        if region is not None:
            if region not in REGIONS or "frame" not in dims:
                raise WorkbenchError(
                    f"region is {region!r} for {name} ({', '.join(dims)}); expected prompt, target or whole, "
                    "and a field with frames"
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
        """Return a table with one row per field: dimensions, shape, type, unit, and `STATS` over all values.

        For a field of which statistics alone were kept, they are combined over the entries that have any.
        """
        rows = []
        for name, value in self.data.items():
            field = FIELDS[name.removesuffix(SUFFIX)]
            row = {"field": name, "dims": ", ".join(dims_of(name)), "shape": tuple(value.shape)}
            row |= {"dtype": str(value.dtype).removeprefix("torch."), "unit": field.unit}
            stats = combine_stats(name, value) if name.endswith(SUFFIX) else summarise(value)
            row |= dict(zip(STATS, stats.tolist(), strict=True))
            rows.append(row)
        return pd.DataFrame(rows).set_index("field")

    def statistics(self, name: str) -> Tensor:
        """Return the tensor `name.stats`, computed from the field where no statistics were kept."""
        kept = self.data.get(name + SUFFIX)
        if kept is not None:
            return kept
        value = self[name]
        dims = dims_of(name + SUFFIX)

        def summarise_entry(entry: Tensor) -> Tensor:
            return summarise_regions(entry, self.prompt_frames) if "region" in dims else summarise(entry)

        if dims[0] not in LOOPS:
            return summarise_entry(value)
        if not len(value):
            return torch.empty((0, *(len(LENGTHS[dim]) for dim in dims[1:])), dtype=torch.float64)
        return torch.stack([summarise_entry(entry) for entry in value])

    def stats(self, name: str) -> pd.DataFrame:
        """Return a table of the `STATS` of a field by step (or knot or draw) and region.

        They are computed from the field, or read where statistics alone were kept. A statistic that was not
        recorded is NaN.
        """
        stats = self.statistics(name)
        dims = dims_of(name + SUFFIX)
        table = stats.reshape(-1, len(STATS))  # (step, region, stat) -> (step * region, stat)
        frame = pd.DataFrame(table.numpy(), columns=list(STATS))
        counts = frame["nonfinite"].round()
        frame["nonfinite"] = counts.where(counts.abs() < MAX_COUNT).astype("Int64")
        if len(dims) > 1:
            labels = [
                REGIONS if dim == "region" else range(n) for dim, n in zip(dims, stats.shape, strict=True)
            ]
            frame.index = pd.MultiIndex.from_product(labels[:-1], names=dims[:-1])
        return frame

    # ---- on disk

    def save(self, path: str | os.PathLike) -> Path:
        """Write one safetensors file, atomically, and return its path.

        Raises
        ------
        WorkbenchError
            When the file cannot be written.
        """
        path = Path(path)
        header = {KEY: json.dumps({"version": VERSION, "attrs": self.attrs})}
        stored = self.data | {TAP + name: value for name, value in self.taps.items()}
        # Copy every tensor: two of them may share memory, which safetensors does not allow.
        data = {name: value.clone(memory_format=torch.contiguous_format) for name, value in stored.items()}
        with atomic_write(path) as draft:
            try:
                save_file(data, draft, metadata=header)
            except SafetensorError as error:  # a full disk, for example
                raise OSError(first_line(error)) from error
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Trace":
        """Read a file that `save` wrote; this needs no model and no GPU.

        Raises
        ------
        WorkbenchError
            When the file is missing, truncated, no trace, or a trace of another schema version.
        """
        path = Path(path)
        if path.suffix.lower() in SOUND_SUFFIXES:
            raise WorkbenchError(
                f"{path} is a sound and has no fields of a run; expected a file that Trace.save wrote. "
                "Compare sounds with wb.compare_sounds or `workbench compare`, and play them with wb.player"
            )
        if not os.path.isfile(path):  # Path.is_file raises an OSError for a name that is too long
            raise WorkbenchError(
                f"{path} does not exist; expected a file that Trace.save wrote{about_address(path)}"
            )
        try:
            with safe_open(path, framework="pt") as file:
                attrs = read_attributes((file.metadata() or {}).get(KEY), path)
            data = load_file(path)
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise WorkbenchError(
                f"{path.name} cannot be read as safetensors ({error}); it is truncated or of another format"
            ) from error
        taps = {name.removeprefix(TAP): data.pop(name) for name in list(data) if name.startswith(TAP)}
        unknown = [name for name in data if dims_of(name) is None]
        if unknown:
            raise WorkbenchError(
                f"{path.name} holds {', '.join(unknown[:5])}, which no trace has; expected fields such as "
                f"{', '.join(list(FIELDS)[-4:])}"
            )
        return cls(in_causal_order(data), attrs, taps)

    # ---- display

    def __repr__(self) -> str:
        return f"Trace({self.attrs.get('text', '')!r:.60}, {self.seconds:.2f} s, {len(self)} fields)"

    def _repr_html_(self) -> str:
        table = table_html(self.to_frame())
        return f"<div><b>{escape(repr(self))}</b>{table}</div>"


def combine_stats(name: str, stats: Tensor) -> Tensor:
    """Combine the kept statistics of a field's entries into those of all its values.

    Parameters
    ----------
    name : str
        Such as "flow/x.stats".
    stats : Tensor (..., 6)

    Returns
    -------
    Tensor (6,)
        NaN for a statistic that no entry has. Means weigh every entry the same.
    """
    table = whole_region(name, stats).reshape(-1, len(STATS)).double()  # (entries, 6)
    if not len(table):
        return torch.full((len(STATS),), torch.nan, dtype=torch.float64)
    known = ~table.isnan()
    lowest = torch.where(known, table, torch.inf).amin(0)
    highest = torch.where(known, table, -torch.inf).amax(0)
    mean = table.nanmean(0)
    rms = table.square().nanmean(0).sqrt()
    total = torch.nansum(table, 0)
    # One column for each of STATS: min, max, mean, mean_abs, rms, nonfinite.
    combined = torch.stack([lowest[0], highest[1], mean[2], mean[3], rms[4], total[5]])
    return torch.where(known.any(0), combined, torch.nan)


def whole_region(name: str, stats: Tensor) -> Tensor:
    """Return the kept statistics of all frames, without those of prompt and target: (6,) or (entries, 6)."""
    if "region" not in dims_of(name):
        return stats
    return stats[..., REGIONS.index("whole"), :]


def _numbers(name: str, value: Tensor) -> Tensor:
    """Return floats as they are, integers and ids as int64."""
    if name in FIELDS and FIELDS[name].unit == "id" and value.is_floating_point():
        # A program that writes float32 alone keeps ids as floats too.
        if not bool((value == value.round()).all() and (value.abs() < MAX_COUNT).all()):
            raise WorkbenchError(f"{name} has values that are no whole numbers; expected ids")
        return value.long()
    if value.dtype in FLOATS or value.dtype == torch.int64:
        return value
    if value.is_floating_point() or value.is_complex():
        dtype = str(value.dtype).removeprefix("torch.")
        raise WorkbenchError(f"{name} is {dtype}; expected float16, bfloat16, float32, float64 or integers")
    return value.long()
