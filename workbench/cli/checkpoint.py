"""`inspect`, `export` and `export-onnx`: what a checkpoint holds, and how others get it."""

import os
from enum import StrEnum
from typing import Annotated

import typer

from workbench.cli.common import Voice, rules_argument
from workbench.errors import WorkbenchError

app = typer.Typer()


class Target(StrEnum):
    """Programs that a checkpoint can be written for."""

    UPSTREAM = "upstream"


@app.command(epilog="Example: workbench inspect pretrained_models/Fun-CosyVoice3-0.5B --prefix flow.decoder")
def inspect(
    folder: Annotated[str, typer.Argument(help="Checkpoint folder, also a broken one, or a weight file.")],
    prefix: Annotated[str, typer.Option(help="Stage and start of the key, such as flow.decoder.")] = "",
) -> int:
    """List the tensors of a checkpoint folder or a weight file, and each file's totals."""
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.checkpoint.inspect import inspect_folder
    from workbench.speech.frontend.speakers import describe_speakers

    frame = inspect_folder(folder, prefix)
    tensors = frame[frame["key"] != ""]
    notes = frame[frame["key"] == ""]["note"]
    if not len(tensors):
        what = f"no tensors that begin with {prefix!r}" if prefix else "no tensors"
        reasons = f" ({'; '.join(notes)})" if len(notes) else ""
        raise WorkbenchError(
            f"{folder} holds {what}{reasons}; expected a checkpoint folder such as data/voices/tiny"
        )
    print(tensors.drop(columns="note").to_string(index=False))
    print()
    for name, sha256 in frame.attrs["sha256"].items():
        rows = tensors[tensors["file"] == name]
        counts = f"{rows['nan'].sum()} NaN, {rows['inf'].sum()} Inf"
        print(f"{name}: {len(rows)} tensors, {rows['MB'].sum():.1f} MB, {counts}, sha256 {sha256[:16]}")
    for note in notes:
        print(f"unreadable: {note}")
    for _, row in tensors[tensors["note"] != ""].iterrows():
        print(f"{row['file']} {row['key']}: {row['note']}")
    if os.path.isfile(folder):
        return 0
    try:
        opened = Checkpoint.load(folder)
        for note in opened.notes:
            print(f"to read it: {note}")
        for line in describe_speakers(opened.spk2info or {}):
            print(f"speaker for --prompt: {line}")
    except WorkbenchError as error:
        print(f"does not open as a checkpoint: {error}")
    return 0


@app.command("export", epilog="Example: workbench export --for upstream output/tiny-for-upstream")
def export_checkpoint(
    out: Annotated[str, typer.Argument(help="Folder to write.")],
    target: Annotated[Target, typer.Option("--for", help="Whose loader shall open it.")],
    voice: Voice = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint that is there.")] = False,
) -> int:
    """Write a checkpoint as another program opens it, and list what that program does otherwise."""
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.checkpoint.for_upstream import DIFFERENCES, export_for_upstream

    folder = export_for_upstream(Checkpoint.load(voice), out, overwrite=force)
    print(f"{folder}\n\n{(folder / DIFFERENCES).read_text(encoding='utf-8')}")
    return 0


@app.command("export-onnx", epilog="Example: workbench export-onnx output/estimator.onnx")
def export(
    out: Annotated[
        str,
        typer.Argument(help="File; as flow.decoder.estimator.fp32.onnx in the voice's folder it is found."),
    ],
    voice: Voice = None,
    part: Annotated[str, typer.Option(help="estimator, or vocoder: its core as engines are built of.")] = (
        "estimator"
    ),
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Put the chunk mask into the estimator.")
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(help="Formats of layers, as --weights of speak: map.toml, or such as float16."),
    ] = None,
) -> int:
    """Write the flow's estimator or the vocoder's core as ONNX, with the names in use.

    With --precision, layers have the formats of a map, and a list beside the file names the nodes in float32.
    """
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.onnx.export import FLOAT32_LIST, export_onnx, shapes

    opened = Checkpoint.load(voice)
    path = export_onnx(opened, out, part, streaming, rules_argument(precision))
    stored = "float32" if precision is None else f"formats of {precision}"
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {stored}")
    if precision is not None:
        print(f"{path}{FLOAT32_LIST}: nodes in float32, for trtexec --layerPrecisions")
    for name, shape in shapes(opened.config, part).items():
        print(f"{name}: ({', '.join(map(str, shape))})")
    return 0
