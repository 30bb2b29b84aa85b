"""The vocoder's core as an ONNX file in ONNX Runtime: upsampling trunk, magnitude and phase.

Engines are built of this part: in front of it torch makes f0, excitation and its spectrum, after it comes the
inverse STFT. The file has `x_pre`, what the first convolution gives, and `s_stft`.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.config import HiFTConfig
from workbench.speech.frontend.onnx_session import open_session
from workbench.speech.onnx.export import MEL_FRAMES, STFT_FRAMES, export_onnx
from workbench.speech.onnx.interface import BATCH, Interface, Slot, program_name


class OnnxVocoder:
    """An ONNX file, called like `HiFT.core`.

    Parameters
    ----------
    path : Path
        A file from `export_onnx` or of another port.
    config : HiFTConfig
        Sizes that the file must have.
    device : torch.device
        Device to compute on.
    origin : str, optional
        Name of the file in `about`; default: its own name.

    Attributes
    ----------
    about : str
        Provenance for traces: file, sha256, version and provider of onnxruntime, and what is renamed or cast.

    Raises
    ------
    WorkbenchError
        When the file is missing, is no model or another model, or onnxruntime cannot use the device.
    """

    def __init__(
        self, path: Path, config: HiFTConfig, device: torch.device, origin: str | None = None
    ) -> None:
        session = open_session(path, device, need_cuda=True)
        bins = config.istft_n_fft // 2 + 1
        inputs = (
            Slot("x_pre", ((BATCH, config.base_channels, MEL_FRAMES),), ("x", "hidden", "conv_pre")),
            Slot("s_stft", ((BATCH, 2 * bins, STFT_FRAMES),), ("s", "source_stft", "spectrum", "stft")),
        )
        outputs = (
            Slot("magnitude", ((BATCH, bins, STFT_FRAMES),), ("mag", "amplitude", "spec")),
            Slot("phase", ((BATCH, bins, STFT_FRAMES),), ("pha", "angle")),
        )
        self._file = Interface(session, path, inputs, outputs, "the core of this vocoder")
        self.about = "; ".join((program_name(path, session, origin), *self._file.notes))

    def __repr__(self) -> str:
        return f"OnnxVocoder({self.about})"

    def __call__(self, x_pre: Tensor, s_stft: Tensor) -> tuple[Tensor, Tensor]:
        """Return magnitude and phase (1, 9, 120 T + 1), float32.

        Parameters
        ----------
        x_pre : Tensor (1, base_channels, T)
            The mel after the first convolution.
        s_stft : Tensor (1, 18, 120 T + 1)
            Spectrum of the excitation, real parts and then imaginary.
        """
        found = self._file.run({"x_pre": x_pre, "s_stft": s_stft})
        return found["magnitude"].to(x_pre.device), found["phase"].to(x_pre.device)


def open_vocoder(checkpoint: Checkpoint, which: str, device: torch.device) -> OnnxVocoder:
    """Open the ONNX file that `Options.vocoder` names: a path, or "onnx" for an export of the weights."""
    config = checkpoint.config.hift
    if which != "onnx":
        return OnnxVocoder(Path(which), config, device)
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(checkpoint, Path(folder) / "hift_decode_core.onnx", part="vocoder")
        return OnnxVocoder(path, config, device, origin="exported from the weights")
