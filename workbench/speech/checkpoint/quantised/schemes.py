"""Schemes of quantised weights that are told by the names of their tensors, and not opened."""

import re
from collections.abc import Collection
from typing import NamedTuple

from workbench.errors import WorkbenchError


class Scheme(NamedTuple):
    """A scheme, with the last parts of names that tell it."""

    name: str
    parts: tuple[re.Pattern, ...]  # each of them matches some tensor's name
    advice: str


def _ends(*patterns: str) -> tuple[re.Pattern, ...]:
    return tuple(re.compile(rf"(^|\.){pattern}$") for pattern in patterns)


TRANSFORMERS = "load the model in transformers, call model.dequantize() and save its state_dict"
# The first one that fits is named: GPTQ has all names of AWQ, and one more.
SCHEMES = (
    Scheme("GPTQ", _ends("qweight", "qzeros", "g_idx"), TRANSFORMERS),
    Scheme("AWQ", _ends("qweight", "qzeros"), TRANSFORMERS),
    Scheme("bitsandbytes 4 bits", _ends(r"weight\.quant_state\.bitsandbytes__\w+"), TRANSFORMERS),
    Scheme("bitsandbytes 4 bits", _ends(r"weight\.absmax", r"weight\.quant_map"), TRANSFORMERS),
    Scheme("bitsandbytes int8", _ends("SCB"), TRANSFORMERS),
    Scheme(
        "compressed-tensors",
        _ends("weight_packed", "weight_scale"),
        "load the model in transformers with run_compressed=False and save its state_dict",
    ),
    Scheme("HQQ", _ends("W_q"), "call dequantize() of each HQQLinear and save the weights"),
    Scheme("EXL2", _ends("q_weight", "q_scale"), "use the weights that it was made from"),
    Scheme(
        "MLX",
        _ends("scales", "biases", "weight"),
        "write them with mlx_lm.convert --dequantize",
    ),
    Scheme(
        "fp8 with scales",
        _ends("weight_scale(_inv)?"),
        "multiply each weight by its scale and save float32 or bfloat16",
    ),
    Scheme(
        "torch.ao",
        _ends(r"_packed_params(\._packed_params)?"),
        "save the state_dict of the model before convert() or quantize_dynamic()",
    ),
)


def check_schemes(names: Collection[str], file: str) -> None:
    """Raise a WorkbenchError that names the scheme, where the names are those of a known one."""
    for scheme in SCHEMES:
        examples = [next((name for name in names if part.search(name)), None) for part in scheme.parts]
        if None not in examples:
            raise WorkbenchError(
                f"{file} is quantised by {scheme.name} ({examples[0][:120]}), which is not opened; expected "
                f"plain weights, GGUF, or torchao's: {scheme.advice}"
            )
