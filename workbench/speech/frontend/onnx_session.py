"""Open ONNX models and run them, with the same settings everywhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError, first_line

if TYPE_CHECKING:
    import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
LOG_FATAL = 4  # onnxruntime logs fatal errors alone; others are raised as exceptions


def open_session(path: Path, device: torch.device, need_cuda: bool = False) -> "onnxruntime.InferenceSession":
    """Open a model that uses as many threads as torch and returns the same bytes at every call.

    Parameters
    ----------
    path : Path
        An ONNX file.
    device : torch.device
        A CUDA device is used if onnxruntime can.
    need_cuda : bool
        True makes it an error if onnxruntime cannot use the CUDA device; otherwise the CPU is used.

    Raises
    ------
    WorkbenchError
        When the file is missing or is no model, or the device cannot be used.
    """
    import onnxruntime

    if not path.is_file():
        raise WorkbenchError(f"{path} does not exist; expected an ONNX model")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_FATAL
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # Threads of onnxruntime that spin while they wait would take the cores from torch, which runs in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[str | tuple[str, dict[str, Any]]] = [CPU]
    if device.type == "cuda" and CUDA in onnxruntime.get_available_providers():
        # TF32 has a mantissa of ten bits, too few for the same result as on a CPU.
        providers.insert(0, (CUDA, {"device_id": device.index or 0, "use_tf32": 0}))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # exceptions of onnxruntime have no common class
        raise WorkbenchError(
            f"{path} is not a readable ONNX model ({first_line(error)}); copy it again"
        ) from None
    if need_cuda and device.type == "cuda" and CUDA not in session.get_providers():
        raise WorkbenchError(
            f"onnxruntime {onnxruntime.__version__} cannot use {device}: it offers "
            f"{', '.join(session.get_providers())}. Install onnxruntime-gpu in place of onnxruntime, of the "
            "CUDA version that torch has, or run on device='cpu'"
        )
    return session


def run_session(
    session: "onnxruntime.InferenceSession",
    path: Path,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
) -> list[Tensor]:
    """Run a model on named inputs and return some outputs, on the CPU.

    Raises
    ------
    WorkbenchError
        When the model does not accept the inputs.
    """
    feed = {name: value.detach().cpu().numpy() for name, value in inputs.items()}
    try:
        return [torch.from_numpy(value) for value in session.run(list(outputs), feed)]
    except Exception as error:
        found = ", ".join(f"{name} {tuple(value.shape)} {value.dtype}" for name, value in feed.items())
        raise WorkbenchError(f"{path} refused {found} ({first_line(error)})") from None
