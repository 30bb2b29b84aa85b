"""A GPU without bfloat16 and TF32 gets float32, and the run says so. The GPU is simulated: its capability alone."""

import pytest
import torch

from workbench.speech.config import Options
from workbench.speech.fast import capability
from workbench.speech.fast.cuda_graphs import can_compile_tf32
from workbench.speech.fast.tf32x3 import tf32x3_is_faster
from workbench.speech.model_cache import ModelCache
from workbench.speech.recording import stated_options

GPU, CPU = torch.device("cuda"), torch.device("cpu")
FAST = Options(compute="fast")


@pytest.fixture(params=[(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)], ids=str)
def gpu(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: request.param)
    return request.param


def test_fast_lowers_the_precision_where_the_gpu_has_the_lower_one(voice, gpu, monkeypatch):
    models = ModelCache(voice, GPU, progress=False)
    found = {stage: models._fast_dtype(FAST, stage) for stage in ("lm", "flow")}
    assert set(found.values()) == {"bfloat16" if gpu >= (8, 0) else "float32"}
    assert models._fast_dtype(FAST.but(lm_dtype="float16"), "lm") == "float16"
    assert models._fast_dtype(FAST.but(lm_dtype="bfloat16"), "lm") == "bfloat16"  # as it was asked for
    assert models._fast_dtype(Options(compute="exact"), "lm") == "float32"
    if gpu < (8, 0):
        assert not can_compile_tf32(GPU) and not tf32x3_is_faster(GPU, torch.float32)


def test_a_run_says_which_way_it_took_where_the_gpu_lacks_something(pipe, gpu, monkeypatch):
    monkeypatch.setattr(pipe, "device", GPU)
    said = stated_options(pipe, FAST).get("way", "")
    assert bool(said) == (gpu < (8, 0))
    if said:
        assert (
            said.startswith("fast: by torch")
            and "float32 stays float32" in said
            and f"capability {gpu[0]}.{gpu[1]})" in said
        )
    assert "way" not in stated_options(pipe, Options())


def test_a_cpu_has_bfloat16_and_needs_no_word(pipe):
    assert capability.dtype_on(CPU, "float32", "bfloat16") == "bfloat16"
    assert "way" not in stated_options(pipe, FAST)
