"""GGUF files of weights, and whether the sizes in their header are those of the configuration."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files import check_regular
from workbench.speech.checkpoint.quantised.dequantised import Dequantised
from workbench.speech.config import Config
from workbench.trace.importers.dumps.gguf_files import open_gguf
from workbench.trace.importers.dumps.stored_tensor import check_size, max_bytes, readable

ARCHITECTURE = "general.architecture"
# What llama.cpp's converter gives these architectures: rows of q and k in another order than in the model.
REORDERED = ("llama", "baichuan", "orion", "xverse", "internlm2", "granite", "minicpm", "deci", "mistral3")
# Sizes by the names of headers: those of llama.cpp behind the architecture, and two ports' own. Shapes do not
# tell the number of heads, the base of the rotary embedding or the epsilon of the norms.
LM_SIZES = {
    "num_hidden_layers": ("block_count", "cosyvoice3.llm.n_layers", "num_hidden_layers"),
    "hidden_size": ("embedding_length", "cosyvoice3.llm.d_model"),
    "intermediate_size": ("feed_forward_length", "cosyvoice3.llm.ff_dim"),
    "num_attention_heads": ("attention.head_count", "cosyvoice3.llm.n_heads", "num_attention_heads"),
    "num_key_value_heads": ("attention.head_count_kv", "cosyvoice3.llm.n_kv_heads", "num_key_value_heads"),
    "rope_theta": ("rope.freq_base", "cosyvoice3.llm.rope_theta", "rope_theta"),
    "rms_norm_eps": ("attention.layer_norm_rms_epsilon", "cosyvoice3.llm.rms_norm_eps", "rms_norm_eps"),
}
DIT_SIZES = {
    "depth": ("cosyvoice3.flow.n_dit_layers", "decoder.estimator.depth"),
    "heads": ("cosyvoice3.flow.dit_heads", "decoder.estimator.heads"),
}


def read_gguf(path: Path) -> tuple[dict[str, Tensor | Dequantised], dict[str, Any]]:
    """Read a GGUF file: its tensors, and the numbers and texts of its header.

    Raises
    ------
    WorkbenchError
        When it cannot be read, claims more bytes than it has, or has a type that the library cannot turn
        into floats.
    """
    with readable(path):
        check_regular(path)
        stored, header = open_gguf(path)
        # Nothing keeps a header from giving the same bytes to thousands of tensors.
        size = sum(4 * math.prod(tensor.shape or ()) for tensor in stored.values())
        check_size(f"{path.name}: all tensors", size, max_bytes(path.stat().st_size))
        found = {}
        for name, tensor in stored.items():
            values = tensor.read()
            if tuple(values.shape) != tensor.shape:
                raise WorkbenchError(
                    f"{path.name}: {name} is {tuple(values.shape)}; its header says {tensor.shape}"
                )
            found[name] = Dequantised(values, tensor.quantised, tensor.nbytes) if tensor.quantised else values
    return found, header


def check_header(header: dict[str, Any], stage: str, config: Config, file: str) -> None:
    """Raise a WorkbenchError where the header of a GGUF file contradicts the configuration.

    Parameters
    ----------
    header : dict
        Empty for other files.
    stage : {"lm", "flow", "hift"}
        Stage whose weights the file holds.
    config : Config
    file : str
        Its name, for messages.
    """
    architecture = str(header.get(ARCHITECTURE, ""))
    if stage == "lm" and architecture in REORDERED:
        raise WorkbenchError(
            f"{file} has the architecture {architecture!r}, for which llama.cpp stores the rows of q and k "
            "in another order; expected 'qwen2': convert the LM again as Qwen2ForCausalLM"
        )
    if stage == "hift":
        return
    sizes, names = (config.lm, LM_SIZES) if stage == "lm" else (config.flow.dit, DIT_SIZES)
    for field, keys in names.items():
        expected = getattr(sizes, field)
        for key in (f"{architecture}.{keys[0]}", *keys):
            found = header.get(key)
            if isinstance(found, int | float) and not math.isclose(found, expected, rel_tol=1e-5):
                raise WorkbenchError(
                    f"{file}: its header says {key} = {found:g}, and the configuration {field} = {expected:g}"
                    "; is it from the same checkpoint? Use the cosyvoice3.yaml and config.json that it was "
                    "made with"
                )
