"""The flow's velocity estimator as an ONNX file in ONNX Runtime.

This is a second implementation of `models/dit.py`: torch exports the graph, ONNX Runtime has its own kernels.
Upstream calls the file `flow.decoder.estimator.fp32.onnx` and builds its TensorRT engine from it
(`cosyvoice/bin/export_onnx.py`). It takes a batch of two, any length, and has full attention: there is no
input for the chunk mask, so it cannot stream. Upstream's engine is used in streaming all the same, without
the mask. Other files have other names, types and batches, or the chunk mask inside; see `interface.py`.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.files import ESTIMATOR
from workbench.speech.config import DiTConfig
from workbench.speech.frontend.onnx_session import open_session
from workbench.speech.models.dit import attention_mask
from workbench.speech.onnx.export import FRAMES, OUTPUT, export_onnx
from workbench.speech.onnx.interface import BATCH, DTYPES, FLOATS, Interface, Slot, program_name

ROWS = 2  # of a batch: with conditions and without
CHANGE = 10.0  # added to a frame to see which others it reaches


class OnnxEstimator:
    """An ONNX file, called like a `DiT`.

    Parameters
    ----------
    path : Path
        A file from `export_onnx`, from the release, or of another port.
    config : DiTConfig
        Sizes that the file must have.
    device : torch.device
        Device to compute on.
    origin : str, optional
        Name of the file in `about`; default: its own name.

    Attributes
    ----------
    about : str
        Provenance for traces: file, sha256, version and provider of onnxruntime, and how the file differs
        from upstream's.
    attention : {"full", "chunks", "other"}
        What a frame attends to, as found by running the file: all frames, its own chunk and those before, or
        something else. An input for the mask makes it "any".

    Raises
    ------
    WorkbenchError
        When the file is missing, is no model or another model, or onnxruntime cannot use the device.
    """

    def __init__(
        self, path: Path, config: DiTConfig, device: torch.device, origin: str | None = None
    ) -> None:
        self.path, self.config = path, config
        session = open_session(path, device, need_cuda=True)
        slots, output = _slots(config), _output(config)
        self._file = Interface(session, path, slots, (output,), "the estimator of this flow")
        self.attention = self._attention()
        notes = list(self._file.notes)
        if self.attention == "chunks":
            notes.append("chunk mask inside")
        self.about = "; ".join((program_name(path, session, origin), *notes))

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
            When `streaming` is True and the file has no chunk mask, or the inputs have wrong shapes.
        """
        if streaming and self.attention not in ("chunks", "any"):
            raise WorkbenchError(
                f"{self.path} has no chunk mask: in it a frame attends to frames that are not there yet in a "
                "stream. Stream with estimator='torch' or with a file for streaming, or synthesise offline"
            )
        return self._run(x, mask, mu, t, spks, cond, streaming).to(x.device)

    def _run(
        self,
        x: Tensor,
        mask: Tensor | None,
        mu: Tensor,
        t: Tensor,
        spks: Tensor,
        cond: Tensor,
        streaming: bool,
    ) -> Tensor:
        mask = torch.ones_like(x[:, :1]) if mask is None else mask
        if self._takes_square_mask():
            chunk = self.config.static_chunk_size if streaming else None
            mask = attention_mask(mask, x.shape[-1], chunk, x.device).expand(len(x), -1, -1)
        values = {"x": x, "mask": mask, "mu": mu, "t": t.expand(len(x)), "spks": spks, "cond": cond}
        values["streaming"] = torch.tensor(streaming)
        return self._file.run(values)[OUTPUT]

    def _takes_square_mask(self) -> bool:
        """Whether the mask is given for each pair of frames, (B, T, T)."""
        mask = self._file.inputs.get("mask")
        return mask is not None and len(mask.shape) == 3 and mask.shape[1] != 1

    def _attention(self) -> str:
        """Find out what a frame attends to: change the last frame of a chunk, and look where that is seen."""
        if "streaming" in self._file.inputs or self._takes_square_mask():
            return "any"
        chunk = self.config.static_chunk_size
        g = torch.Generator().manual_seed(0)
        x, mu, cond = (torch.randn(ROWS, self.config.mel_dim, 2 * chunk, generator=g) for _ in range(3))
        spks = torch.randn(ROWS, self.config.spk_dim, generator=g)

        def first_chunk(changed_frame: int | None) -> Tensor:
            moved = x.clone()
            if changed_frame is not None:
                moved[..., changed_frame] += CHANGE
            return self._run(moved, None, mu, torch.tensor(0.5), spks, cond, False)[..., :chunk]

        before = first_chunk(None)
        sees_next_chunk = not torch.equal(first_chunk(2 * chunk - 1), before)
        sees_own_chunk = not torch.equal(first_chunk(chunk - 1)[..., 0], before[..., 0])
        if sees_next_chunk:
            return "full"
        return "chunks" if sees_own_chunk else "other"


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


def _slots(config: DiTConfig) -> tuple[Slot, ...]:
    """Return the inputs that an estimator may have, in upstream's order."""
    mask_shapes = ((BATCH, 1, FRAMES), (BATCH, FRAMES, FRAMES), (BATCH, FRAMES))
    time_shapes = ((BATCH,), (), (BATCH, 1))
    return (
        Slot(
            "x",
            ((BATCH, config.mel_dim, FRAMES),),
            ("sample", "noisy", "xt", "x_t", "latent", "latents", "z"),
        ),
        Slot("mask", mask_shapes, ("x_mask", "attn_mask", "attention_mask"), tuple(DTYPES), is_optional=True),
        Slot("mu", ((BATCH, config.mu_dim, FRAMES),), ("token_mu", "h_mu", "encoder_out")),
        Slot("t", time_shapes, ("time", "timestep", "timesteps", "tt")),
        Slot(
            "spks", ((BATCH, config.spk_dim),), ("spk", "speaker", "spk_emb", "speaker_emb", "spk_embedding")
        ),
        Slot("cond", ((BATCH, config.mel_dim, FRAMES),), ("prompt", "prompt_cond", "prompt_mel", "conds")),
        Slot("streaming", ((), (1,)), ("is_streaming",), ("tensor(bool)",), is_optional=True),
    )


def _output(config: DiTConfig) -> Slot:
    aliases = ("output", "out", "velocity", "v", "dphi_dt", "pred")
    return Slot(OUTPUT, ((BATCH, config.out_channels, FRAMES),), aliases, FLOATS)
