"""Quantised weights equal those of the libraries that ports use, to the last bit; each format has a row here.

`tests/assets/quantised.npz` holds what ggml, torchao, MLX and bitsandbytes made of a few rows (see
`make_references.py`). gguf and ONNX Runtime are installed with the development tools and run here.
"""

import gguf
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings, strategies
from onnxruntime.quantization.quant_utils import quantize_data

import workbench as wb
from tests.paths import ASSETS
from tests.profiles import examples
from workbench.speech.config.formats import FORMATS, parse_format, rules_of
from workbench.speech.models.quantise.ggml import QUANTISERS, Blocks, quantise_blocks
from workbench.speech.models.quantise.modules import quantise_layers

REFERENCES = dict(np.load(ASSETS / "quantised.npz"))
LIBRARIES = REFERENCES.pop("libraries")
LAYER_OUTPUT = REFERENCES.pop("int8 layer")
WEIGHT = torch.from_numpy(REFERENCES.pop("weight"))
BYTES = {name.removeprefix("ggml "): value for name, value in REFERENCES.items() if name.startswith("ggml ")}
VALUES = {name: value for name, value in REFERENCES.items() if not name.startswith("ggml ")}
GGUF_TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in QUANTISERS}


def bits(values):
    """Floats as integers, so that a comparison sees the sign of 0 and NaN."""
    return np.asarray(values, np.float32).view(np.int32)


def packed(name: str, blocks: Blocks) -> np.ndarray:
    """The bytes of blocks as ggml stores them, one row a block."""
    codes = blocks.codes.astype(np.uint8)
    d = blocks.scale[:, None].view(np.uint8)
    if name == "q8_0":
        return np.concatenate((d, codes), 1)
    if name == "q6_k":
        quarters = codes.reshape(len(codes), 2, 4, 32)  # two halves of 128 codes
        low = quarters[:, :, :2] & 15 | (quarters[:, :, 2:] & 15) << 4
        shifts = np.array((0, 2, 4, 6), np.uint8)[:, None]
        high = np.bitwise_or.reduce(quarters >> 4 << shifts, axis=2)
        scales = blocks.scale_codes.astype(np.int8).view(np.uint8)
        return np.concatenate((low.reshape(len(codes), -1), high.reshape(len(codes), -1), scales, d), 1)
    if blocks.offset is not None:
        d = np.concatenate((d, blocks.offset[:, None].view(np.uint8)), 1)
    if name.endswith("_k"):
        pairs = codes.reshape(len(codes), 4, 2, 32)
        low = pairs[:, :, 0] & 15 | (pairs[:, :, 1] & 15) << 4
        position = np.arange(8, dtype=np.uint8).reshape(4, 2, 1)
        high = np.bitwise_or.reduce((pairs >> 4) << position, axis=(1, 2))
        d = np.concatenate((d, packed_scales(blocks)), 1)
    else:
        low = codes[:, :16] & 15 | (codes[:, 16:] & 15) << 4
        high = np.packbits(codes >> 4, axis=1, bitorder="little")
    parts = (
        (d, high, low.reshape(len(codes), -1)) if name.startswith("q5") else (d, low.reshape(len(codes), -1))
    )
    return np.concatenate(parts, 1)


def packed_scales(blocks: Blocks) -> np.ndarray:
    """Eight scales and eight minima of 6 bits in 12 bytes."""
    scale, minimum = blocks.scale_codes.astype(np.uint8), blocks.offset_codes.astype(np.uint8)
    first = scale[:, :4] | scale[:, 4:] >> 4 << 6
    second = minimum[:, :4] | minimum[:, 4:] >> 4 << 6
    third = scale[:, 4:] & 15 | (minimum[:, 4:] & 15) << 4
    return np.concatenate((first, second, third), 1)


def onnx_values(weight: np.ndarray, symmetric: bool) -> np.ndarray:
    """What ONNX Runtime's quantiser makes of a tensor in int8."""
    zero, scale, codes = quantize_data(weight, onnx.TensorProto.INT8, symmetric)
    return (codes.astype(np.float32) - np.float32(zero)) * np.float32(scale)


@pytest.mark.parametrize("name", QUANTISERS)
def test_scales_and_codes_are_the_bytes_that_ggml_writes(name):
    made = packed(name, quantise_blocks(WEIGHT.numpy().reshape(-1, QUANTISERS[name][0]), name))
    np.testing.assert_array_equal(made.reshape(len(WEIGHT), -1), BYTES[name])


@pytest.mark.parametrize("name", QUANTISERS)
def test_values_are_those_that_gguf_reads_from_the_bytes(name):
    read = gguf.quants.dequantize(BYTES[name], GGUF_TYPES[name])
    np.testing.assert_array_equal(bits(wb.quantise(WEIGHT, name).values), bits(read))


@pytest.mark.parametrize("name", ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1"))
@given(seed=strategies.integers(0, 2**32 - 1), power=strategies.integers(1, 7))
@settings(max_examples=examples(20), deadline=None)
def test_values_are_those_of_ggufs_own_quantiser(name, seed, power):
    weight = (np.random.default_rng(seed).standard_normal((3, 64)) ** power / 8**power).astype(np.float32)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weight, GGUF_TYPES[name]), GGUF_TYPES[name])
    np.testing.assert_array_equal(bits(wb.quantise(torch.from_numpy(weight), name).values), bits(theirs))


@pytest.mark.parametrize("name", ("q4_k", "q5_k", "q6_k"))
@given(seed=strategies.integers(0, 2**32 - 1), power=strategies.integers(1, 7))
@settings(max_examples=examples(20), deadline=None)
def test_gguf_reads_super_blocks_as_they_were_computed(name, seed, power):
    weight = (np.random.default_rng(seed).standard_normal((2, 256)) ** power).astype(np.float32)
    weight /= np.abs(weight).max()  # far smaller ones meet the coarse steps of float16's subnormal scales
    blocks = quantise_blocks(weight, name)
    read = gguf.quants.dequantize(packed(name, blocks), GGUF_TYPES[name])
    np.testing.assert_array_equal(bits(blocks.values), bits(read))
    assert np.abs(blocks.values - weight).max() < np.abs(weight).max() / 7


@pytest.mark.parametrize("text", VALUES)
def test_values_are_those_of_torchao_mlx_and_bitsandbytes(text):
    np.testing.assert_array_equal(wb.quantise(WEIGHT, text).values.numpy(), VALUES[text])


def test_a_linear_layer_with_quantised_inputs_computes_what_torchaos_does():
    layer = torch.nn.Linear(256, len(WEIGHT), bias=False)
    layer.weight.data.copy_(WEIGHT)
    model = torch.nn.ModuleDict({"first": layer})
    quantise_layers(model, "lm", rules_of("lm=int8:full,dynamic"))
    output = layer(WEIGHT).detach()
    torch.testing.assert_close(output, torch.from_numpy(LAYER_OUTPUT), rtol=1e-5, atol=1e-6)
    weight_only = torch.nn.functional.linear(WEIGHT, wb.quantise(WEIGHT, "int8:full").values)
    assert (output - weight_only).abs().max() > 1e-3


@pytest.mark.parametrize("detail", ("tensor", "channel"))
def test_symmetric_int8_is_that_of_onnx_runtime(detail):
    weight = WEIGHT.numpy()
    rows = [onnx_values(each, True) for each in (weight if detail == "channel" else [weight])]
    theirs = np.stack(rows).reshape(weight.shape)
    np.testing.assert_array_equal(wb.quantise(WEIGHT, f"int8:{detail}").values.numpy(), theirs)


def test_asymmetric_int8_is_that_of_onnx_runtime_but_for_rounding():
    ours = wb.quantise(WEIGHT, "int8:channel,asymmetric").values.numpy()
    for row, mine in zip(WEIGHT.numpy(), ours, strict=True):
        theirs = onnx_values(row, False)
        step = (max(row.max(), 0) - min(row.min(), 0)) / 255
        # It takes the range in float64 and divides: a scale differs in its last bit, a tie by one code.
        is_rounding = np.abs(mine - theirs) <= 1e-6 * np.abs(theirs).max()
        assert is_rounding.mean() > 0.99
        assert np.abs(mine - theirs).max() <= 1.001 * step


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros_and_no_format_makes_nan(name):
    assert not wb.quantise(torch.zeros(4, 256), name).values.any()
    tiny = torch.full((4, 256), 1e-42)
    assert (wb.quantise(tiny, name).values - tiny).abs().max() <= 1e-8


@pytest.mark.parametrize("name", FORMATS)
def test_the_error_of_a_weight_is_at_most_a_step(name):
    weight = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    error = (wb.quantise(weight, name).values - weight).abs().max() / weight.abs().max()
    precision = {
        "float16": 11,
        "bfloat16": 8,
        "fp8_e4m3": 4,
        "fp8_e5m2": 3,
        "nf4": 3,
    }  # bits; widest gap of nf4
    assert error <= 1.25 * 0.5 ** precision.get(name, FORMATS[name].bits)


def test_rows_that_no_block_divides_get_the_format_that_llama_quantize_gives_them():
    used = {}
    for columns in (512, 96, 80):
        for name in ("q4_k", "q5_k", "q6_k", "q8_0", "q4_0"):
            used[columns, name] = wb.quantise(torch.ones(2, columns), name).format
    assert [used[512, name] for name in ("q4_k", "q5_k", "q6_k")] == ["q4_k", "q5_k", "q6_k"]
    assert [used[96, name] for name in ("q4_k", "q5_k", "q6_k")] == ["q5_0", "q5_1", "q8_0"]
    assert [used[96, name] for name in ("q8_0", "q4_0")] == ["q8_0", "q4_0"]
    assert {used[80, name] for name in ("q4_k", "q5_k", "q6_k", "q8_0", "q4_0")} == {"float16"}
    for name in ("int4:group=64", "mlx4"):
        assert wb.quantise(torch.ones(2, 80), name).format == "float32"


def test_a_long_kernel_is_quantised_by_channel_alone():
    kernel = torch.randn(64, 32, 7, generator=torch.Generator().manual_seed(0))
    for name, used in (("q4_k", "float16"), ("q8_0", "float16"), ("mlx4", "float32"), ("nf4", "float32")):
        assert wb.quantise(kernel, name).format == used
    for name in ("int8:channel", "fp8_e4m3:channel"):
        matrix = wb.quantise(kernel.flatten(1), name).values
        torch.testing.assert_close(
            wb.quantise(kernel, name).values, matrix.reshape(kernel.shape), rtol=0, atol=0
        )
    pointwise = wb.quantise(kernel[..., :1], "q8_0")
    assert pointwise.format == "q8_0"
    assert torch.equal(pointwise.values[..., 0], wb.quantise(kernel[..., 0], "q8_0").values)


@pytest.mark.parametrize("name", QUANTISERS)
def test_bytes_are_counted_with_their_scales(name):
    assert wb.quantise(WEIGHT, name).nbytes == BYTES[name].size
    assert wb.formats().set_index("format")["bits"][name] == BYTES[name].size * 8 / WEIGHT.numel()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8", 32 * 64 + 32 * 4),
        ("int8:tensor", 32 * 64 + 4),
        ("int4:group=32,asymmetric", 32 * 32 + 64 * 4 + 64 // 2),
        ("int4:group=32,offset", 32 * 32 + 64 * 8),
        ("mlx4", 32 * 32 + 32 * 8),
        ("mlx4:group=32,float16", 32 * 32 + 64 * 4),
        ("fp8_e5m2:tensor", 32 * 64 + 4),
        ("nf4", 32 * 32 + 32 * 4),
        ("float16", 32 * 64 * 2),
    ],
)
def test_bytes_of_other_formats_are_codes_scales_and_offsets(text, expected):
    assert wb.quantise(torch.ones(32, 64), text).nbytes == expected


@pytest.mark.parametrize(
    ("weight", "text", "said"),
    [
        (torch.ones(4, 64), "q4_x", "did you mean q4_k"),
        (torch.ones(4, 64), "int4:group=48", "group=32"),
        (torch.ones(4, 64), "int4:channel,tensor", "a second detail of its kind"),
        (torch.ones(4, 64), "q4_k:group=64", "details of q4_k: weight-only or dynamic"),
        (torch.ones(4, 64), 4, "expected text"),
        (torch.ones(64), "q4_k", "2 or more axes"),
        (torch.ones(4, 64, dtype=torch.long), "q4_k", "tensor of floats"),
        ("lm", "q4_k", "tensor of floats"),
        (torch.full((4, 64), torch.nan), "q4_k", "NaN or Inf"),
        (torch.full((4, 64), 1e30), "q8_0", "cannot hold"),
        (torch.full((4, 64), 1e30), "q4_1", "cannot hold"),
    ],
)
def test_what_cannot_be_quantised_is_refused_in_words(weight, text, said):
    with pytest.raises(wb.WorkbenchError, match=said):
        wb.quantise(weight, text)


@pytest.mark.parametrize("text", [*FORMATS, *VALUES, " INT4 : Group=128 , Asymmetric"])
def test_a_format_is_read_back_from_its_text(text):
    parsed = parse_format(text)
    assert parse_format(str(parsed)) == parsed


def test_empty_weights_and_other_types_are_quantised():
    assert wb.quantise(torch.ones(0, 256), "q4_k").values.shape == (0, 256)
    half = WEIGHT.bfloat16()
    assert torch.equal(wb.quantise(half, "q8_0").values, wb.quantise(half.float(), "q8_0").values)
