"""float32 that is float32, and float32 that is not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute in full float32, the same way every time; usable as a decorator.

    On a GPU, torch lets cuDNN compute float32 convolutions in TF32, ten bits of mantissa, unless told
    otherwise: mu is then off by 4e-4, the waveform by 2e-3.
    """
    with _tf32(False):
        yield


@contextmanager
def fast_float32() -> Iterator[None]:
    """Let a GPU compute float32 products and convolutions in TF32; elsewhere nothing changes."""
    with _tf32(True):
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=allowed):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
