"""The workbench for a shell: one function a verb.

A verb is a function that takes the parsed arguments and returns an exit code, and a few lines in
`parser` that name it.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from workbench.errors import WorkbenchError


def parser() -> argparse.ArgumentParser:
    """Every verb with its arguments."""
    top = argparse.ArgumentParser(prog="workbench", description="Find out where CosyVoice3 went wrong.")
    verbs = top.add_subparsers(dest="verb", required=True)

    verb = verbs.add_parser("inspect", help="list the tensors of a checkpoint folder, also of a broken one")
    verb.add_argument("folder")
    verb.add_argument("--prefix", default="", help="stage and start of the key, such as flow.decoder")
    verb.set_defaults(run=inspect)

    return top


def inspect(args: argparse.Namespace) -> int:
    """Print a folder's tensors and each file's totals."""
    from workbench.speech.inspection import inspect_folder

    frame = inspect_folder(args.folder, args.prefix)
    tensors = frame[frame["key"] != ""]
    print(tensors.drop(columns="note").to_string(index=False) if len(tensors) else "no tensors")
    print()
    for name, sha256 in frame.attrs["sha256"].items():
        rows = tensors[tensors["file"] == name]
        counts = f"{rows['nan'].sum()} NaN, {rows['inf'].sum()} Inf"
        print(f"{name}: {len(rows)} tensors, {rows['MB'].sum():.1f} MB, {counts}, sha256 {sha256[:16]}")
    for note in frame[frame["key"] == ""]["note"]:
        print(f"unreadable: {note}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when it went well, 2 after an error that the person can act on."""
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
