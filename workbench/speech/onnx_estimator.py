"""The flow's velocity estimator as an ONNX file: export it, and run it in ONNX Runtime.

This is a second implementation of `models/dit.py`: torch exports the graph, ONNX Runtime has its own kernels.
Upstream calls the file `flow.decoder.estimator.fp32.onnx` and builds its TensorRT engine from it
(`cosyvoice/bin/export_onnx.py`). It takes a batch of two, any length, and has full attention. There is no
input for the chunk mask, so it cannot stream. Upstream's engine is used in streaming all the same, without
the mask.
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
from workbench.speech.frontend.onnx_session import open_session, run_session

if TYPE_CHECKING:
    import onnxruntime

OUTPUT = "estimator_out"
FRAMES = "seq_len"  # upstream's name of the dimension that may have any length
EXAMPLE_FRAMES = 64  # length of the input that the exporter traces; any other would do
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
    """An ONNX file, called like a `DiT`.

    Parameters
    ----------
    path : Path
        A file from `export_onnx` or from the release.
    config : DiTConfig
        Sizes that the file must have.
    device : torch.device
        Device to compute on.
    origin : str, optional
        Name of the file in `about`; default: its own name.

    Attributes
    ----------
    about : str
        Provenance for traces: file, sha256, version and provider of onnxruntime.

    Raises
    ------
    WorkbenchError
        When the file is missing, is no model or another model, or onnxruntime cannot use the device.
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
            When `streaming` is True, or the inputs have wrong shapes.
        """
        if streaming:
            raise WorkbenchError(
                "the ONNX estimator has full attention and no chunk mask; stream with estimator='torch', "
                "or synthesise offline"
            )
        mask = torch.ones_like(x[:, :1]) if mask is None else mask
        values = (x, mask, mu, t.expand(len(x)), spks, cond)
        inputs = dict(zip(self._inputs, values, strict=True))
        return run_session(self._session, self.path, inputs, OUTPUT).to(x.device)


def open_estimator(checkpoint: Checkpoint, which: str, device: torch.device) -> OnnxEstimator:
    """Open the ONNX file that `Options.estimator` names.

    Parameters
    ----------
    checkpoint : Checkpoint
        The file must have its sizes.
    which : str
        A path, or "onnx" for the file in the checkpoint's folder. Where the folder has none, the weights are
        exported to a temporary file.
    device : torch.device
        Device to compute on.
    """
    config = checkpoint.config.flow.dit
    path = checkpoint.estimator if which == "onnx" else Path(which)
    if path is not None:
        return OnnxEstimator(path, config, device)
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(checkpoint, Path(folder) / ESTIMATOR)
        return OnnxEstimator(path, config, device, origin="exported from the weights")


def export_onnx(checkpoint: Checkpoint, path: str | os.PathLike) -> Path:
    """Export the estimator of a checkpoint's flow to ONNX, in float32 and with upstream's names.

    Parameters
    ----------
    checkpoint : Checkpoint
        The estimator of its `flow` is exported.
    path : path
        The file, written atomically. In a checkpoint's folder and with upstream's name,
        `flow.decoder.estimator.fp32.onnx`, `Options(estimator="onnx")` finds it.

    Returns
    -------
    Path
        The file. Inputs `x`, `mu`, `cond` (2, 80, T), `mask` (2, 1, T), `t` (2,), `spks` (2, 80); output
        `estimator_out` (2, 80, T), with any T. Weights that the exporter does not transform keep their names.

    Raises
    ------
    WorkbenchError
        When the file cannot be written.

    Examples
    --------
    It takes some seconds:

    >>> path = wb.export_onnx(voice, "output/estimator.onnx")  # doctest: +SKIP
    >>> trace = pipe.synthesise(utt, options=voice.options.but(estimator=str(path)))  # doctest: +SKIP
    """
    path = Path(path)
    with atomic_write(path) as draft:
        _program(checkpoint).save(draft, external_data=False)
    return path


def _program(checkpoint: Checkpoint) -> torch.onnx.ONNXProgram:
    dit = checkpoint.build("flow", "cpu").decoder.estimator
    expected = shapes(dit.config)
    names = [name for name in expected if name != OUTPUT]
    example = []
    free_dims: dict[str, dict[int, str]] = {}  # by input: the dimensions of any length
    for name in names:
        shape = expected[name]
        example.append(torch.ones([EXAMPLE_FRAMES if n == FRAMES else n for n in shape]))
        free_dims[name] = {i: n for i, n in enumerate(shape) if n == FRAMES}
    with _quiet():
        program = torch.onnx.export(
            dit,
            tuple(example),
            input_names=names,
            output_names=[OUTPUT],
            dynamic_shapes=free_dims,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop(STACK_TRACE, None)  # it holds paths of the machine that exports
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about itself and about packages that are not needed."""
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
    """Refuse a file that is not this estimator; extra outputs are allowed."""
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
    """Whether type and shape are as wanted; a dimension that has a name, not a number, is free."""
    if found is None or wanted is None or len(found) != len(wanted) or found[0] != wanted[0]:
        return False
    return all(n == m or not isinstance(n, int) for n, m in zip(found[1:], wanted[1:], strict=True))


def _show(value: tuple | None) -> str:
    return "nothing" if value is None else f"{value[0]} ({', '.join(map(str, value[1:]))})"
