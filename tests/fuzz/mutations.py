"""Make hostile inputs from good ones: damaged bytes, odd values, odd tensors. All chance comes from `rng`."""

import io
import json
import re
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save

import workbench as wb

HUGE = ((2**62).to_bytes(8, "little"), (2**31).to_bytes(8, "little"), b"\xff" * 8, b"\0" * 8)
ODD_VALUES = (
    *("", "x", "\ud800", "\0", "é" * 300, "<script>", "{step}", "../x", "nan", "1:1:1"),
    *(0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"), True, None),
    *([], {}, [[]], [1, "a"], {"a": {"b": 1}}, [0] * 50),
)
ODD_SHAPES = ((1, 80, 5), (2, 80, 5), (80, 5), (5, 80), (3, 1, 80, 5), (5,), (1,), (), (0,), (0, 80, 5))
ODD_DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.uint8)


class Tools(NamedTuple):
    """What cases share."""

    folder: Path  # empty before each case
    pipe: wb.Pipeline
    recorded: wb.Trace


def damaged(data: bytes, rng: Random) -> bytes:
    """Change, insert, remove or repeat a few bytes, more often near the start, where headers are."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        if not found:
            break
        at = rng.randrange(len(found)) if rng.random() < 0.5 else rng.randrange(min(len(found), 300))
        kind = rng.randrange(6)
        if kind == 0:
            found[at] = rng.randrange(256)
        elif kind == 1:
            del found[at : at + rng.randrange(1, 50)]
        elif kind == 2:
            found[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3:
            found[at : at + 8] = rng.choice(HUGE)
        elif kind == 4:
            del found[at:]
        else:
            source = rng.randrange(len(found))
            found[at : at + 20] = found[source : source + 20]
    return bytes(found)


VALUE = re.compile(r"""-?\b\d[\d._e]*|"[^"\n]*"|'[^'\n]*'|\btrue\b|\bfalse\b""")


def odd_values(text: str, rng: Random) -> str:
    """Replace some numbers and quoted strings of a text by odd values; its structure stays."""
    places = list(VALUE.finditer(text))
    for place in sorted(
        rng.sample(places, min(len(places), rng.choice((1, 1, 2, 5)))), key=lambda m: -m.start()
    ):
        value = rng.choice(ODD_VALUES)
        odd = json.dumps(value) if rng.random() < 0.7 else str(value)[:2000]
        text = text[: place.start()] + odd + text[place.end() :]
    return text


def odd_text(text: str, rng: Random) -> str:
    """Replace, repeat or insert a few words of a text."""
    words = text.split(" ")
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(words))
        kind = rng.randrange(4)
        if kind == 0:
            words[at] = str(rng.choice(ODD_VALUES))[:300]
        elif kind == 1:
            words[at] = words[at] * rng.choice((2, 50, 200))
        elif kind == 2:
            words[at] = rng.choice("[]{}()\"'!:,&*|>%@`#-\t\n") * rng.choice((1, 3, 300))
        else:
            words[at : at + rng.randrange(3)] = [chr(rng.randrange(1, 0x10FF))]
    return " ".join(words)


def odd_run(data: dict[str, torch.Tensor], rng: Random) -> dict[str, torch.Tensor]:
    """Return some fields of a run, a few of them cut, scaled, constant or of another dtype."""
    kept = {name: x for name, x in data.items() if rng.random() < rng.choice((0.3, 0.7, 1.0))}
    for name in rng.sample(sorted(kept), min(len(kept), rng.randrange(4))):
        x = kept[name]
        kind = rng.randrange(6)
        if kind == 0 and x.ndim:
            x = x[..., : rng.randrange(x.shape[-1] + 1)]
        elif kind == 1 and x.ndim:
            x = x[: rng.randrange(x.shape[0] + 1)]
        elif kind == 2 and x.is_floating_point():
            x = x * rng.choice((0.0, 1e30, -1.0, float("inf"), float("nan")))
        elif kind == 3:
            x = torch.full_like(x, rng.choice((0, 1, 100, -1)))
        elif kind == 4 and x.is_floating_point():
            x = x.to(rng.choice((torch.float16, torch.bfloat16, torch.float64)))
        elif x.ndim:
            x = torch.cat((x, x))
        kept[name] = x.contiguous()
    return kept


def odd_tensors(names: list[str], rng: Random) -> dict[str, torch.Tensor]:
    """Return some of the names with tensors of odd shapes, dtypes and values."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    tensors = {}
    for name in names:
        if rng.random() < 0.3:
            continue
        x = torch.randn(rng.choice(ODD_SHAPES), generator=generator)
        if rng.random() < 0.1:
            x = x * rng.choice((1e30, 0.0, float("inf"), float("nan")))
        tensors[name] = x.to(rng.choice(ODD_DTYPES)) if rng.random() < 0.2 else x
    return tensors


def dump_bytes(kind: str, tensors: dict[str, torch.Tensor]) -> bytes:
    """Write a dump in one of the formats that people use."""
    buffer = io.BytesIO()
    if kind == "safetensors":
        return save({name: x.contiguous() for name, x in tensors.items()})
    if kind == "pt":
        torch.save({"state": [tensors, {"n": 3}]}, buffer)
    elif kind == "json":
        return json.dumps({name: x.float().tolist() for name, x in tensors.items()}).encode()
    elif kind == "npz":
        np.savez_compressed(buffer, **{name: x.float().numpy() for name, x in tensors.items()})
    elif kind == "npy":
        np.save(buffer, next(iter(tensors.values()), torch.zeros(3)).float().numpy())
    else:  # raw float32
        buffer.write(b"".join(x.float().numpy().tobytes() for x in tensors.values()))
    return buffer.getvalue()
