"""Make `tests/assets/quantised.npz`: what other libraries make of the same weights. Not run by the tests.

    PYTHONPATH=. python tests/speech/models/quantise/make_references.py libggml-base.so

Needs torchao, mlx with its CPU back end, bitsandbytes, and ggml compiled without fused multiply-add.
"""

import ctypes
import sys

import bitsandbytes
import bitsandbytes.functional
import mlx.core as mx
import numpy as np
import torch
import torchao
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    PerGroup,
    PerRow,
    PerTensor,
    quantize_,
)
from torchao.quantization import quant_primitives as torchao_primitives
from torchao.quantization.quantize_.workflows import Float8Tensor, Int8Tensor

import workbench as wb
from tests.paths import ASSETS

GGML_TYPES = {"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q4_k": 12, "q5_k": 13, "q6_k": 14}
FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
GRANULARITIES = {"channel": PerRow(), "tensor": PerTensor(), "group=64": PerGroup(64)}


def weights() -> np.ndarray:
    """Rows of 256 weights: random, with outliers, of the bundled voice, all positive, with zeros, constant."""
    rng = np.random.default_rng(0)
    random = rng.standard_normal((2, 256)) * 0.05
    outliers = rng.standard_normal((2, 256)) ** 5 * 0.05
    voice = wb.Checkpoint.load().weights["lm"]["llm_decoder.weight"][:2].float().numpy()
    positive = np.abs(rng.standard_normal((1, 256))) + 0.2
    half_zero = rng.standard_normal((1, 256)) * (np.arange(256) % 3 == 0) * (np.arange(256) >= 64)
    constant = np.full((1, 256), -0.3)
    return np.concatenate((random, outliers, voice, positive, half_zero, constant)).astype(np.float32)


def ggml_bytes(library: str, weight: np.ndarray, name: str) -> np.ndarray:
    """Return the bytes of each row, from ggml's own C code."""
    ggml = ctypes.CDLL(library)
    ggml.ggml_row_size.restype = ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    pointers = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    ggml.ggml_quantize_chunk.argtypes = [*pointers, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    rows, columns = weight.shape
    kind = GGML_TYPES[name]
    made = np.zeros((rows, ggml.ggml_row_size(kind, columns)), np.uint8)
    size = ggml.ggml_quantize_chunk(kind, weight.ctypes.data, made.ctypes.data, 0, rows, columns, None)
    assert size == made.size
    return made


def mlx_values(weight: np.ndarray, bits: int, group: int, dtype: str) -> np.ndarray:
    """Return codes times scales plus biases of mlx.core.quantize, in float32."""
    given = mx.array(weight).astype(getattr(mx, dtype))
    packed, *scales = mx.quantize(given, group_size=group, bits=bits)
    codes = np.array(packed)[..., None] >> np.arange(0, 32, bits, dtype=np.uint32) & (1 << bits) - 1
    scale, bias = (np.array(each.astype(mx.float32))[..., None] for each in scales)
    values = codes.reshape(len(weight), -1, group).astype(np.float32) * scale + bias
    return values.reshape(weight.shape)


def affine_values(weight: torch.Tensor, bits: int, block: tuple[int, int], mapping: str) -> torch.Tensor:
    """Return what torchao's quantise and dequantise make, with whole zero points."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    kind = torchao_primitives.MappingType[mapping.upper()]
    scales = torchao_primitives.choose_qparams_affine(weight, kind, block, torch.int8, low, high)
    codes = torchao_primitives.quantize_affine(weight, block, *scales, torch.int8, low, high)
    return torchao_primitives.dequantize_affine(codes, block, *scales, torch.int8, low, high)


def offset_values(weight: torch.Tensor, bits: int, block: tuple[int, int]) -> torch.Tensor:
    """Return what torchao makes for its kernels of int4: float offsets."""
    kind, span = torchao_primitives.MappingType.ASYMMETRIC, (torch.int32, 0, (1 << bits) - 1)
    scales = torchao_primitives._choose_qparams_affine_tinygemm(weight, kind, block, *span)
    codes = torchao_primitives._quantize_affine_tinygemm(weight, block, *scales, *span)
    return torchao_primitives._dequantize_affine_tinygemm(codes, block, *scales, *span)


def main() -> None:
    array = weights()
    weight = torch.from_numpy(array)
    found = {f"ggml {name}": ggml_bytes(sys.argv[1], array, name) for name in GGML_TYPES}
    for bits in (4, 8):
        for group in (32, 64, 128):
            found[f"mlx{bits}:group={group}"] = mlx_values(array, bits, group, "float32")
        for dtype in ("float16", "bfloat16"):
            found[f"mlx{bits}:group=64,{dtype}"] = mlx_values(array, bits, 64, dtype)
        for detail, block in (("channel", (1, 256)), ("tensor", tuple(array.shape)), ("group=32", (1, 32))):
            found[f"int{bits}:{detail},asymmetric"] = affine_values(weight, bits, block, "asymmetric")
            if bits == 4:
                found[f"int4:{detail}"] = affine_values(weight, bits, block, "symmetric")
        found[f"int{bits}:group=128,offset"] = offset_values(weight, bits, (1, 128))
    for detail, granularity in GRANULARITIES.items():
        found[f"int8:{detail},full"] = Int8Tensor.from_hp(weight, granularity).dequantize()
    for name, dtype in FP8.items():
        for detail in ("channel", "tensor"):
            made = Float8Tensor.from_hp(weight, float8_dtype=dtype, granularity=GRANULARITIES[detail])
            found[f"{name}:{detail}"] = made.dequantize()
    for group in (64, 256):
        stored = bitsandbytes.functional.quantize_4bit(weight, blocksize=group, quant_type="nf4")
        found[f"nf4:group={group}"] = bitsandbytes.functional.dequantize_4bit(*stored)
    layer = torch.nn.Sequential(torch.nn.Linear(256, len(array), bias=False))
    layer[0].weight.data.copy_(weight)
    quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    found["int8 layer"] = layer(weight).detach()
    libraries = [f"torchao {torchao.__version__}", f"mlx {mx.__version__}", "ggml 0.15.3"]
    libraries.append(f"bitsandbytes {bitsandbytes.__version__}")
    arrays = {name: np.asarray(value) for name, value in found.items()}
    np.savez_compressed(ASSETS / "quantised.npz", weight=array, libraries=libraries, **arrays)


if __name__ == "__main__":
    main()
