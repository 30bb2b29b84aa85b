"""Open ONNX models and run them, with the same settings everywhere and with bounded memory and time.

A file may claim any amount: a few bytes can ask for gigabytes, or for a loop that does not end. What a run
may take follows from the size of the file and of its inputs, far above what such a model needs.
"""

import glob
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
LOG_FATAL = 4  # onnxruntime logs fatal errors alone; others are raised as exceptions
PREAMBLE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?")
FREE_BYTES = 384 << 20  # that any run may take ...
BYTES_PER_FILE_BYTE = 4  # ... beside the weights, which are copied to be packed ...
BYTES_PER_PAIR = 512  # ... attention, 32 heads and four copies, for each pair of positions ...
BYTES_PER_INPUT_BYTE = 256  # ... and what is made of the inputs
FREE_SECONDS = 8.0  # that any run may take ...
SECONDS_PER_MB = 0.2  # ... beside these for each megabyte of the file ...
SECONDS_PER_INPUT_MB = 10.0  # ... and of the inputs


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

    if not os.path.isfile(path):  # Path.is_file raises an OSError for a name that is too long
        raise WorkbenchError(f"{path} does not exist; expected an ONNX model")
    onnxruntime.set_default_logger_severity(LOG_FATAL)  # for what is said outside of a session
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_FATAL
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # Threads of onnxruntime that spin while they wait would take the cores from torch, which runs in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # With weights in codes, by default inputs are rounded to 8 bits, which is not what the file says.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    providers: list[str | tuple[str, dict[str, Any]]] = [CPU]
    if device.type == "cuda" and CUDA in onnxruntime.get_available_providers():
        # TF32 has a mantissa of ten bits, too few for the same result as on a CPU.
        providers.insert(0, (CUDA, {"device_id": device.index or 0, "use_tf32": 0}))
    bound = FREE_BYTES + BYTES_PER_FILE_BYTE * _size(path)
    try:
        with _bounded_memory(bound if len(providers) == 1 else None):
            # Without its fallback, which prints and tries the same again.
            session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # exceptions of onnxruntime have no common class
        if _is_lack_of_memory(error):
            raise _too_large(path, bound) from None
        advice = "copy it again"
        if "Could not find an implementation" in str(error):
            advice = f"onnxruntime {onnxruntime.__version__} lacks it here, as bfloat16 on a CPU; try float16"
        elif "IR version" in str(error) or "opset" in str(error).lower():
            advice = f"onnxruntime {onnxruntime.__version__} is older: export it with a lower opset"
        raise WorkbenchError(f"{path} is not a readable ONNX model ({_reason(error)}); {advice}") from None
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
    import onnxruntime

    feed = {name: value.detach().cpu().numpy() for name, value in inputs.items()}
    size = sum(value.nbytes for value in feed.values())
    lengths = [
        max(value.shape) for value in feed.values() if value.ndim > 2
    ]  # the spectrum's is not attended
    bound = FREE_BYTES + BYTES_PER_FILE_BYTE * _size(path) + BYTES_PER_INPUT_BYTE * size
    bound += BYTES_PER_PAIR * min(lengths, default=0) ** 2
    seconds = FREE_SECONDS + SECONDS_PER_MB * _size(path) / 1e6 + SECONDS_PER_INPUT_MB * size / 1e6
    options = onnxruntime.RunOptions()
    options.log_severity_level = LOG_FATAL
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    on_cpu = CUDA not in session.get_providers()
    try:
        with _bounded_memory(bound if on_cpu else None):
            return [torch.from_numpy(value) for value in session.run(list(outputs), feed, options)]
    except Exception as error:
        if options.terminate:
            raise WorkbenchError(
                f"{path} did not end within {seconds:.0f} s, far more than such a model takes; is it the "
                "right file?"
            ) from None
        if _is_lack_of_memory(error):
            raise _too_large(path, bound) from None
        found = ", ".join(f"{name} {tuple(value.shape)} {value.dtype}" for name, value in feed.items())
        raise WorkbenchError(f"{path} refused {found} ({_reason(error)})") from None
    finally:
        timer.cancel()


def files_of(path: Path) -> list[Path]:
    """Return a model's file and the files with weights beside it, such as `model.onnx.data`."""
    beside = sorted(path.parent.glob(f"{glob.escape(path.name)}[._]data*"))
    return [file for file in (path, *beside) if file.is_file()]


def _size(path: Path) -> int:
    """Return the bytes of a model; 0 for a temporary one, whose weights are in memory since it was opened."""
    return sum(file.stat().st_size for file in files_of(path))


@contextmanager
def _bounded_memory(n_bytes: int | None) -> Iterator[None]:
    """Let the process take this many bytes more and no more; only Linux can, and None sets no bound."""
    status = Path("/proc/self/statm")
    if n_bytes is None or not status.is_file():
        yield
        return
    import resource

    n_pages = int(status.read_text().split()[5])  # data and stack
    limit = n_pages * resource.getpagesize() + n_bytes
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY and soft < limit:
        yield  # somebody has set a lower bound
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:  # not back to `soft`: that may be the bound of a run in another thread, which has ended since
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _reason(error: Exception) -> str:
    """Return what onnxruntime says, without the place in its source code."""
    said = PREAMBLE.sub("", str(error).strip())
    return said.rpartition(") ")[2][:160] if "/onnxruntime_src/" in said else said[:160]


def _is_lack_of_memory(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or "bad_alloc" in said or "allocate memory" in said


def _too_large(path: Path, bound: int) -> WorkbenchError:
    return WorkbenchError(
        f"{path} asks for more than {bound >> 20} MB, far more than a model of its size takes; is it the "
        "right file?"
    )
