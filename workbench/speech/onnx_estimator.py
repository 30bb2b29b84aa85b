"""The estimator of the flow as an ONNX file: written, and run by ONNX Runtime.

A second implementation of `dit.py`: the graph is torch's, every kernel is somebody else's. The file is
what upstream calls `flow.decoder.estimator.fp32.onnx` and builds its TensorRT engine from
(`cosyvoice/bin/export_onnx.py`): a batch of two, any length, full attention. It has no input that could
ask for the chunk mask, so it cannot stream; upstream's engine streams all the same, without the mask.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files import atomic_write
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.files import ESTIMATOR
from workbench.speech.checkpoint.weights import hash_file
from workbench.speech.config import DiTConfig
from workbench.speech.frontend.onnx_session import ask, open_session

if TYPE_CHECKING:
    import onnxruntime

OUTPUT = "estimator_out"
FRAMES = "seq_len"  # the free dimension, under upstream's name
OPSET = 18  # upstream's
STACK_TRACE = "pkg.torch.onnx.stack_trace"

Shape = tuple[int | str, ...]


def shapes(config: DiTConfig) -> dict[str, Shape]:
    """Return the shape of every input, in the order of `DiT.forward`, and of the output."""
    return {
        "x": (2, config.mel_dim, FRAMES),
        "mask": (2, 1, FRAMES),
        "mu": (2, config.mu_dim, FRAMES),
        "t": (2,),
        "spks": (2, config.spk_dim),
        "cond": (2, config.mel_dim, FRAMES),
        OUTPUT: (2, config.out_channels, FRAMES),
    }


class OnnxEstimator:
    """An ONNX file that is called as `DiT` is.

    Parameters
    ----------
    path : Path
        Such as `export_onnx` writes or the release has.
    config : DiTConfig
        Sizes that the file must have.
    device : torch.device
        Where it computes.
    origin : str, optional
        What `about` calls the file; its name by default.

    Attributes
    ----------
    about : str
        What a trace says of it: the file with its sha256, version and provider of onnxruntime.

    Raises
    ------
    WorkbenchError
        When the file is missing, no model or another model, or onnxruntime cannot use the device.
    """

    def __init__(
        self, path: Path, config: DiTConfig, device: torch.device, origin: str | None = None
    ) -> None:
        import onnxruntime

        self.path = path
        self._session = open_session(path, device, need_cuda=True)
        expected = shapes(config)
        self._inputs = [name for name in expected if name != OUTPUT]
        _check(self._session, expected, path)
        file = f"{origin or path.name}, sha256 {hash_file(path)[:12]}"
        self.about = f"{file}, onnxruntime {onnxruntime.__version__} {self._session.get_providers()[0]}"

    def __repr__(self) -> str:
        return f"OnnxEstimator({self.about})"

    def __call__(
        self,
        x: Tensor,
        mask: Tensor | None,
        mu: Tensor,
        t: Tensor,
        spks: Tensor,
        cond: Tensor,
        streaming: bool = False,
    ) -> Tensor:
        """Estimate the velocity; parameters as in `DiT.forward`, batch 2, float32.

        Raises
        ------
        WorkbenchError
            When asked for chunked attention, or for what does not fit.
        """
        if streaming:
            raise WorkbenchError(
                "the ONNX estimator has full attention alone and no chunk mask; stream with "
                "estimator='torch', or run offline"
            )
        mask = torch.ones_like(x[:, :1]) if mask is None else mask
        given = dict(zip(self._inputs, (x, mask, mu, t.expand(len(x)), spks, cond), strict=True))
        return ask(self._session, self.path, given, OUTPUT).to(x.device)


def open_estimator(checkpoint: Checkpoint, which: str, device: torch.device) -> OnnxEstimator:
    """Open the file that `Options.estimator` means.

    Parameters
    ----------
    checkpoint : Checkpoint
        Whose sizes the file must have.
    which : str
        A path, or "onnx": the file in the checkpoint's folder; where there is none, the weights are
        exported to a file that goes once it is open.
    device : torch.device
        Where it computes.
    """
    config = checkpoint.config.flow.dit
    path = checkpoint.estimator if which == "onnx" else Path(which)
    if path is not None:
        return OnnxEstimator(path, config, device)
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(checkpoint, Path(folder) / ESTIMATOR)
        return OnnxEstimator(path, config, device, origin="exported from the weights")


def export_onnx(checkpoint: Checkpoint, path: str | os.PathLike) -> Path:
    """Write the estimator of a checkpoint's flow, in float32, with upstream's names.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its `flow` is exported.
    path : path
        The file; it appears whole or not at all. In a checkpoint's folder under upstream's name,
        `flow.decoder.estimator.fp32.onnx`, it is found by `Options(estimator="onnx")`.

    Returns
    -------
    Path
        The file. Inputs `x`, `mu`, `cond` (2, 80, T), `mask` (2, 1, T), `t` (2,), `spks` (2, 80); output
        `estimator_out` (2, 80, T); T is free. Weights keep their names where the graph has them as they are.

    Raises
    ------
    WorkbenchError
        When the file cannot be written.
    """
    path = Path(path)
    with atomic_write(path) as draft:
        _program(checkpoint).save(draft, external_data=False)
    return path


def _program(checkpoint: Checkpoint) -> torch.onnx.ONNXProgram:
    dit = checkpoint.build("flow", "cpu").decoder.estimator
    expected = shapes(dit.config)
    names = [name for name in expected if name != OUTPUT]
    example = tuple(torch.ones([64 if n == FRAMES else n for n in expected[name]]) for name in names)
    free = {name: {i: n for i, n in enumerate(expected[name]) if n == FRAMES} for name in names}
    with _quiet():
        program = torch.onnx.export(
            dit,
            example,
            input_names=names,
            output_names=[OUTPUT],
            dynamic_shapes=free,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop(STACK_TRACE, None)  # the exporting machine's own paths
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on itself, and on packages that are not needed, off the screen."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _check(session: "onnxruntime.InferenceSession", expected: dict[str, Shape], path: Path) -> None:
    """Refuse a file that is not this estimator; outputs beside its own are nobody's harm."""
    outputs = [value for value in session.get_outputs() if value.name == OUTPUT]
    found = {value.name: (value.type, *value.shape) for value in (*session.get_inputs(), *outputs)}
    wanted = {name: ("tensor(float)", *shape) for name, shape in expected.items()}
    wrong = [
        f"{name}: expected {_show(wanted.get(name))}, found {_show(found.get(name))}"
        for name in wanted | found
        if not _fits(found.get(name), wanted.get(name))
    ]
    if wrong:
        raise WorkbenchError(
            f"{path} is not the estimator of this flow: {'; '.join(wrong)}. "
            "`workbench export-onnx` writes one that is"
        )


def _fits(found: tuple | None, wanted: tuple | None) -> bool:
    """Whether type and shape are those wanted; a dimension without a number is free."""
    if found is None or wanted is None or len(found) != len(wanted) or found[0] != wanted[0]:
        return False
    return all(n == m or not isinstance(n, int) for n, m in zip(found[1:], wanted[1:], strict=True))


def _show(value: tuple | None) -> str:
    return "nothing" if value is None else f"{value[0]} ({', '.join(map(str, value[1:]))})"
