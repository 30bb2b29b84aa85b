"""The speed of formats: torch's kernels compute what our formats say, and a refusal is told."""

import pytest

from workbench.diagnose.benchmarks import format_speed
from workbench.diagnose.benchmarks.format_speed import measure_format_speed
from workbench.speech.config import LMConfig

SMALL = LMConfig(
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=256,
)


@pytest.fixture(scope="module")
def table():
    return measure_format_speed(SMALL, rounds=1).set_index("format")


def test_kernels_compute_what_the_formats_say(table):
    ran = table[table["note"] == ""]
    assert {"float32", "bfloat16", "int8:channel", "int4:group=32", "int4:group=128"} <= set(ran.index)
    assert (ran["ms"] > 0).all()
    assert ran["error"].drop("fp8_e4m3:tensor", errors="ignore").max() < 0.02  # inputs are bfloat16
    assert ran["error"].max() < 0.1  # and fp8 where the kernel multiplies in it
    assert ran["error"]["float32"] == 0


def test_bytes_are_those_of_weights_and_scales(table):
    weights = 2 * (256 * 128 + 128 * 128 + 512 * 128 + 128 * 256)  # two layers
    assert table["megabytes"]["bfloat16"] == pytest.approx(2e-6 * weights)
    assert table["bytes_ratio"]["float32"] == 0.5
    # a scale and a zero of 16 bits for 32 weights of 4 bits
    assert table["bytes_ratio"]["int4:group=32"] == pytest.approx(16 / 5)


def test_a_kernel_that_torch_lacks_is_told(monkeypatch):
    def refused(weight, text):
        raise RuntimeError("no such kernel here\nbecause of reasons")

    kernels = {"bfloat16": format_speed.KERNELS["bfloat16"], "int8:channel": refused}
    monkeypatch.setattr(format_speed, "KERNELS", kernels)
    table = measure_format_speed(SMALL, rounds=1).set_index("format")
    assert table["note"].to_dict() == {"bfloat16": "", "int8:channel": "no such kernel here"}
    assert table["ms"].notna().to_dict() == {"bfloat16": True, "int8:channel": False}
