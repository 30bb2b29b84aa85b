"""Open whatever a run was kept in: `open` is the one door for traces, dumps, logs and sounds."""

import os
from pathlib import Path

from workbench.speech.frontend.audio_files import read_samples
from workbench.trace.importers.logs.logs import Log
from workbench.trace.importers.open_run import is_run_file, open_run
from workbench.trace.schema import SOUND_SUFFIXES
from workbench.trace.trace import Trace


def open(
    source: Trace | Log | str | os.PathLike,
    mapping: str | os.PathLike | None = None,
    names: str | os.PathLike | None = None,
) -> Trace:
    """Open a run: a trace, a dump of tensors, a text log or a sound.

    Parameters
    ----------
    source : Trace, Log or path
        A dump is a .safetensors, .npz, .npy, .pt (weights only), .gguf, .json or .csv file, raw numbers such
        as "mel_1x80x38.f32", or a folder of such files. "server.log#2" is the second run of a log. A Trace
        is returned as it is.
    mapping : path, optional
        Says which tensor of a dump is which field. Without it the mappings of `data/foreign/` are tried; the
        one that fits is named in `attrs["mapping"]`.
    names : path, optional
        Table of what logs call tensors, as in `read_log`.

    Returns
    -------
    Trace
        Of a sound `hift/wav` alone, the mean of its channels.

    Raises
    ------
    WorkbenchError
        When the file cannot be read, a log holds several runs, or no mapping fits.

    Examples
    --------
    >>> import pathlib, tempfile, torch
    >>> from safetensors.torch import save_file
    >>> dump = pathlib.Path(tempfile.mkdtemp()) / "dump.safetensors"
    >>> save_file({"step1_v1": torch.zeros(1, 80, 9), "step2_v1": torch.ones(1, 80, 9)}, dump)
    >>> theirs = wb.open(dump)
    >>> theirs.attrs["mapping"], list(theirs)
    ('steps.toml', ['flow/velocity_cond'])
    >>> list(wb.open(wb.data_path("prompts/kumo_0.flac")))
    ['hift/wav']
    """
    is_path = isinstance(source, str | os.PathLike)
    is_sound = is_path and Path(source).suffix.lower() in SOUND_SUFFIXES
    if is_sound or (is_path and os.path.isfile(source) and not is_run_file(Path(source))):
        wav, rate, _, _ = read_samples(source)
        return Trace({"hift/wav": wav}, {"sample_rate": rate, "source": str(source)})
    return open_run(source, names, mapping)
