"""`inspect` and `export-onnx`: what a checkpoint holds, and its estimator for other runtimes."""

from typing import Annotated

import typer

from workbench.cli.common import Voice
from workbench.errors import WorkbenchError

app = typer.Typer()


@app.command(epilog="Example: workbench inspect pretrained_models/Fun-CosyVoice3-0.5B --prefix flow.decoder")
def inspect(
    folder: Annotated[str, typer.Argument(help="Checkpoint folder, also a broken one.")],
    prefix: Annotated[str, typer.Option(help="Stage and start of the key, such as flow.decoder.")] = "",
) -> int:
    """List the tensors of a checkpoint folder, and each file's totals."""
    from workbench.speech.checkpoint.inspect import inspect_folder

    frame = inspect_folder(folder, prefix)
    tensors = frame[frame["key"] != ""]
    notes = frame[frame["key"] == ""]["note"]
    if not len(tensors) and not len(notes):
        what = f"no tensors that begin with {prefix!r}" if prefix else "no tensors"
        raise WorkbenchError(f"{folder} holds {what}; expected a checkpoint folder such as data/voices/tiny")
    print(tensors.drop(columns="note").to_string(index=False))
    print()
    for name, sha256 in frame.attrs["sha256"].items():
        rows = tensors[tensors["file"] == name]
        counts = f"{rows['nan'].sum()} NaN, {rows['inf'].sum()} Inf"
        print(f"{name}: {len(rows)} tensors, {rows['MB'].sum():.1f} MB, {counts}, sha256 {sha256[:16]}")
    for note in notes:
        print(f"unreadable: {note}")
    return 0


@app.command("export-onnx", epilog="Example: workbench export-onnx output/estimator.onnx")
def export(
    out: Annotated[
        str,
        typer.Argument(help="File; as flow.decoder.estimator.fp32.onnx in the voice's folder it is found."),
    ],
    voice: Voice = None,
) -> int:
    """Write the flow's estimator as ONNX, with upstream's names."""
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.onnx_estimator import export_onnx, shapes

    opened = Checkpoint.load(voice)
    path = export_onnx(opened, out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, float32")
    for name, shape in shapes(opened.config.flow.dit).items():
        print(f"{name}: ({', '.join(map(str, shape))})")
    return 0
