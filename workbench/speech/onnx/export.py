"""Write the flow's estimator and the vocoder's core as ONNX files, with the names in use.

They are in float32, or in the formats of a map; `precision.py` puts these into the graph.
"""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils import parametrize

from workbench.errors import WorkbenchError
from workbench.files import atomic_write
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.quantised.layers import layers
from workbench.speech.config import Config
from workbench.speech.config.formats import Format, parse_format
from workbench.speech.models.dit import DiT
from workbench.speech.models.hift import HiFT
from workbench.speech.models.quantise.modules import layers_of
from workbench.speech.onnx.precision import check_formats, opset_of, set_formats

OUTPUT = "estimator_out"
FRAMES = "seq_len"  # upstream's name of the dimension that may have any length
MEL_FRAMES, STFT_FRAMES = "T_mel", "T_stft"
EXAMPLE_FRAMES = 64  # length of the input that the exporter traces; any other would do
STACK_TRACE = "pkg.torch.onnx.stack_trace"
PARTS = ("estimator", "vocoder")
STARTS = {"estimator": "flow.decoder.estimator.", "vocoder": "hift."}  # of the names of a part's layers
OUTSIDE = ("m_source", "conv_pre", "f0_predictor")  # of the vocoder's core
FLOAT32_LIST = ".float32.txt"  # behind the name of a file with casts

Shape = tuple[int | str, ...]


def shapes(config: Config, part: str = "estimator") -> dict[str, Shape]:
    """Return the shape of every input of a file, in order, and of its outputs."""
    if part == "vocoder":
        hift = config.hift
        bins = hift.istft_n_fft // 2 + 1
        return {
            "x_pre": (1, hift.base_channels, MEL_FRAMES),
            "s_stft": (1, 2 * bins, STFT_FRAMES),
            "magnitude": (1, bins, STFT_FRAMES),
            "phase": (1, bins, STFT_FRAMES),
        }
    dit = config.flow.dit
    return {
        "x": (2, dit.mel_dim, FRAMES),
        "mask": (2, 1, FRAMES),
        "mu": (2, dit.mu_dim, FRAMES),
        "t": (2,),
        "spks": (2, dit.spk_dim),
        "cond": (2, dit.mel_dim, FRAMES),
        OUTPUT: (2, dit.out_channels, FRAMES),
    }


def export_onnx(
    checkpoint: Checkpoint,
    path: str | os.PathLike,
    part: str = "estimator",
    streaming: bool = False,
    precision: str | Mapping[str, str] | os.PathLike | None = None,
) -> Path:
    """Export a part of a checkpoint to ONNX.

    Parameters
    ----------
    checkpoint : Checkpoint
    path : path
        The file, written atomically. An estimator in a checkpoint's folder and with upstream's name,
        `flow.decoder.estimator.fp32.onnx`, is found by `Options(estimator="onnx")`.
    part : {"estimator", "vocoder"}
        The flow's estimator, or the vocoder between its first convolution and the inverse STFT, which
        engines call `hift_decode_core.onnx`.
    streaming : bool
        True puts the chunk mask into the estimator; such a file has no use offline.
    precision : str, mapping of str to str, or Path, optional
        Formats of layers, as `Options(weights=...)` has them; layers of other parts are left out. A layer in
        float16 or bfloat16 computes in it, between casts. Integers, fp8, q8_0 and q4_0 are stored as codes in
        front of a DequantizeLinear, and the layer computes in float32. Beside the file stands a list of the
        nodes that compute in float32, `<file>.float32.txt`, one `node:fp32` a line, as trtexec's
        `--layerPrecisions` has them. With the casts, an engine that is built strongly typed needs no list.

    Returns
    -------
    Path
        The file. Estimator: inputs `x`, `mu`, `cond` (2, 80, T), `mask` (2, 1, T), `t` (2,), `spks` (2, 80);
        output `estimator_out` (2, 80, T), with any T. Vocoder: inputs `x_pre` (1, 512, T) and `s_stft`
        (1, 18, 120 T + 1), real parts and then imaginary; outputs `magnitude`, not clipped, and `phase`
        (1, 9, 120 T + 1). Weights that the exporter does not transform keep their names.

    Raises
    ------
    WorkbenchError
        When there is no such part, no layer of it has a format, ONNX has no type for one, or the file cannot
        be written.

    Examples
    --------
    It takes some seconds:

    >>> path = wb.export_onnx(voice, "output/estimator.onnx")  # doctest: +SKIP
    >>> trace = pipe.synthesise(utt, options=voice.options.but(estimator=str(path)))  # doctest: +SKIP
    """
    if part not in PARTS or (streaming and part != "estimator"):
        raise WorkbenchError(
            f"part is {part!r} and streaming {streaming}; expected one of {', '.join(PARTS)}, and "
            "streaming=True for the estimator alone"
        )
    path = Path(path)
    formats = {} if precision is None else _formats(checkpoint, part, precision)
    program, nodes = _program(checkpoint, part, streaming, formats)
    with atomic_write(path) as draft:
        program.save(draft, external_data=False)
    if precision is not None:
        with atomic_write(path.with_name(path.name + FLOAT32_LIST)) as draft:
            draft.write_text("".join(f"{name}:fp32\n" for name in nodes), encoding="utf-8")
    return path


def _formats(
    checkpoint: Checkpoint, part: str, precision: str | Mapping[str, str] | os.PathLike
) -> dict[str, Format]:
    """Return the format of each layer of a part that does not stay in float32."""
    table = layers(checkpoint, precision)
    used = dict(zip(table["layer"], table["format"], strict=True))
    outside = tuple(f"hift.{name}" for name in OUTSIDE) if part == "vocoder" else ()
    formats = {
        layer: parse_format(name)
        for layer, name in used.items()
        if layer.startswith(STARTS[part]) and not layer.startswith(outside) and name != "float32"
    }
    if not formats:
        raise WorkbenchError(
            f"precision gives no layer of the {part} another format than float32; its layers are those of "
            f"workbench.layers(voice) that begin with {STARTS[part]!r}"
        )
    check_formats(formats)
    return formats


class _StreamingEstimator(nn.Module):
    """An estimator that always attends in chunks."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, x: Tensor, mask: Tensor, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor) -> Tensor:
        return self.dit(x, mask, mu, t, spks, cond, True)


class _Core(nn.Module):
    """The vocoder between its first convolution and the inverse STFT."""

    def __init__(self, hift: HiFT) -> None:
        super().__init__()
        self.hift = hift

    def forward(self, x_pre: Tensor, s_stft: Tensor) -> tuple[Tensor, Tensor]:
        log_magnitude, angle = self.hift.decode_core(x_pre, s_stft).chunk(2, dim=1)
        return log_magnitude.exp(), torch.sin(angle)


def _program(
    checkpoint: Checkpoint, part: str, streaming: bool, formats: Mapping[str, Format]
) -> tuple[torch.onnx.ONNXProgram, list[str]]:
    """Return a part as a graph, and the names of its nodes that compute in float32."""
    expected = shapes(checkpoint.config, part)
    if part == "vocoder":
        hift = checkpoint.build("hift", "cpu")
        _multiply_weight_norm_out(hift)
        model: nn.Module = _Core(hift)
        known = layers_of(hift, "hift")
        outputs = ["magnitude", "phase"]
        per_frame = math.prod(hift.config.upsample_rates)  # frames of the spectrum
        frames = Dim(MEL_FRAMES, min=2)
        lengths = {MEL_FRAMES: EXAMPLE_FRAMES, STFT_FRAMES: per_frame * EXAMPLE_FRAMES + 1}
        dims = {MEL_FRAMES: frames, STFT_FRAMES: per_frame * frames + 1}
    else:
        dit = checkpoint.build("flow", "cpu").decoder.estimator
        model = _StreamingEstimator(dit) if streaming else dit
        known = layers_of(dit, STARTS[part].rstrip("."))
        outputs = [OUTPUT]
        lengths, dims = {FRAMES: EXAMPLE_FRAMES}, {FRAMES: FRAMES}
    example = []
    free_dims = {}  # by input: the dimensions of any length
    for name in (name for name in expected if name not in outputs):
        shape = expected[name]
        example.append(torch.ones([lengths.get(n, n) for n in shape]))
        free_dims[name] = {i: dims[n] for i, n in enumerate(shape) if n in dims}
    with _quiet():
        program = torch.onnx.export(
            model,
            tuple(example),
            input_names=list(free_dims),
            output_names=outputs,
            dynamic_shapes=free_dims,
            opset_version=opset_of(formats),
            dynamo=True,
            verbose=False,
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop(STACK_TRACE, None)  # it holds paths of the machine that exports
    # In the graph a module has the name that it has in `model`.
    start = {"vocoder": "", "estimator": STARTS["estimator"]}[part]
    inner = "dit." if streaming else ""
    names = {layer: inner + layer.removeprefix(start) for layer in formats}
    weights = {names[layer]: known[layer].weight for layer in formats}
    nodes = set_formats(program.model, weights, {names[layer]: used for layer, used in formats.items()})
    return program, nodes


def _multiply_weight_norm_out(model: nn.Module) -> None:
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


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
