"""Write LMs that torchao quantised to tests/assets/torchao, with the weights that it computes from them.

    python tests/speech/checkpoint/quantised/make_references.py now      with torchao 0.18
    python tests/speech/checkpoint/quantised/make_references.py affine   with torchao 0.11

The older version has other classes (`AffineQuantizedTensor`). `int4.pt` is left out: torchao makes its packed
int4 on a GPU alone.
"""

import sys

import torch
from safetensors.torch import save_file

from tests.paths import ROOT
from tests.speech.checkpoint.tiny_voice import TINY
from workbench.speech.checkpoint.checkpoint import Checkpoint

FOLDER = ROOT / "tests" / "assets" / "torchao"


def configs():
    """Return name -> configuration of torchao, in the version that is installed."""
    import torchao.quantization as ao

    if sys.argv[1] == "affine":
        return {
            "affine-int8": ao.int8_weight_only(),
            "affine-int8-dynamic": ao.int8_dynamic_activation_int8_weight(),
        }
    groups = ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(4))
    return {
        "int8": ao.Int8WeightOnlyConfig(),
        "int8-dynamic": ao.Int8DynamicActivationInt8WeightConfig(),
        "int4-groups": groups,
        "float8": ao.Float8WeightOnlyConfig(),
    }


def plain(value):
    value = getattr(value, "original_weight_tensor", value)
    is_plain = type(value) in (torch.Tensor, torch.nn.Parameter)
    return (value if is_plain else value.dequantize()).detach().float().contiguous().clone()


def main():
    from torchao.quantization import quantize_

    FOLDER.mkdir(exist_ok=True)
    for name, config in configs().items():
        lm = Checkpoint.random(TINY, seed=3).lm()
        if name == "affine-int8-dynamic":  # which leaves out layers of less than 16 inputs
            lm = torch.nn.Linear(32, 8, bias=False)
        quantize_(lm, config)
        weights = lm.state_dict()
        torch.save(weights, FOLDER / f"{name}.pt")
        save_file(
            {key: plain(value) for key, value in weights.items()}, FOLDER / f"{name}.expected.safetensors"
        )
        if sys.argv[1] == "now":
            from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

            tensors, header = flatten_tensor_state_dict({k: v.detach() for k, v in weights.items()})
            save_file(tensors, FOLDER / f"{name}.safetensors", header)


if __name__ == "__main__":
    main()
