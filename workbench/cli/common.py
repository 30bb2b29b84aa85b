"""What several verbs share: their common arguments, and how these are opened."""

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from workbench.errors import WorkbenchError
from workbench.files import data_path
from workbench.speech.config import PRESETS, Options

if TYPE_CHECKING:
    import pandas as pd

    from workbench.speech.pipeline import Pipeline
    from workbench.trace.trace import Trace

OPTION_NAMES = tuple(field.name for field in fields(Options))
BUNDLED_VOICE = "the bundled voice"
BUNDLED_PROMPT = "prompts/kumo_0.flac"

Voice = Annotated[str | None, typer.Option("--voice", help="Checkpoint folder.", show_default=BUNDLED_VOICE)]
# A verb that works without a model, and says more with one.
OtherVoice = Annotated[
    str | None,
    typer.Option("--voice", help="Checkpoint folder that both ran: decides rounding, finds the cause."),
]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", help="Recording to clone.", show_default=f"the bundled {BUNDLED_PROMPT}"),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:1.")]
OptionPairs = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="A field of Options, listed below, or preset=vllm or trtllm-serve; may be repeated.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FORMAT|FILE",
        help="Quantise the weights: q4_k, 'lm=q4_k;flow=int8', or a TOML file with lines such as "
        '"flow.decoder.*" = "q8_0".',
    ),
]
Names = Annotated[
    str | None,
    typer.Option("--names", help="Table of what logs call tensors.", show_default="logs.toml of the package"),
]

Mappings = Annotated[
    list[str] | None,
    typer.Option(
        "--mapping",
        metavar="FILE",
        help="Which tensor of a dump is which field; repeat it for a second dump.",
        show_default="a shipped one that fits",
    ),
]


class HasDict(Protocol):
    """A result that JSON can hold."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""


def options_of(pairs: Sequence[str]) -> dict[str, object]:
    """Read NAME=VALUE pairs; a value is JSON where it parses as such, and text otherwise.

    Raises
    ------
    WorkbenchError
        When a pair has no "=".
    """
    found: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise WorkbenchError(f"{pair!r} is not NAME=VALUE, such as n_timesteps=1")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):  # RecursionError: "[[[[..."
            found[name] = value
    return found


def rules_argument(weights: str | None) -> str | Path | None:
    """Return formats of layers as `Options.weights` takes them: text, or the path of a TOML file."""
    return Path(weights) if weights is not None and weights.endswith(".toml") else weights


def run_options(pairs: Sequence[str] | None, weights: str | None = None) -> dict[str, object]:
    """Read `--option` and `--weights` and check names and values, before any model is opened."""
    found = options_of(pairs or ())
    if weights is not None:
        if "weights" in found:
            raise WorkbenchError("--weights and --option weights are both given; expected one of them")
        found["weights"] = rules_argument(weights)
    for name in found:
        if name not in (*OPTION_NAMES, "preset"):
            raise WorkbenchError(
                f"--option {name}: no option has this name; {did_you_mean(name, OPTION_NAMES)}"
                "`workbench speak --help` lists them"
            )
    preset = found.pop("preset", None)
    if preset is not None:
        Options().preset(preset)  # says which there are
        found = PRESETS[preset] | found
    Options().but(**found)
    return found


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return a question that names the closest known name; empty when none is close."""
    close = get_close_matches(name, known, 1)
    return f"did you mean {close[0]}? " if close else ""


def print_help_without_verb(context: typer.Context) -> None:
    """Print the help of a group of verbs that was called without one of them."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def check_device(name: str) -> None:
    """Raise a WorkbenchError when this machine has no such device."""
    from workbench.speech.stage_runner import open_device

    open_device(name)


def open_pipe(voice: str | None, device: str, progress: bool = True) -> "Pipeline":
    """Open a voice on a device; None is the bundled voice."""
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.pipeline import Pipeline

    check_device(device)
    checkpoint = Checkpoint.load(voice)
    for note in checkpoint.notes:
        print(f"{voice}: {note}", file=sys.stderr)
    return Pipeline(checkpoint, device, progress)


def open_prompt(path: str | None) -> Path:
    """Return the path of the recording to clone."""
    return Path(path) if path else data_path(BUNDLED_PROMPT)


def open_traces(
    paths: Sequence[str], names: str | None, mappings: Sequence[str] | None = None
) -> "list[Trace]":
    """Open traces, dumps and logs; `server.log#2` is the second run of a log.

    Of several mappings the first is that of the first dump; the last one serves all further dumps.
    """
    from workbench.trace.importers.open_run import open_run

    remaining = list(mappings or ())
    traces = []
    for path in paths:
        trace = open_run(path, names, remaining[0] if remaining else None)
        if "mapping" in trace.attrs and len(remaining) > 1:
            remaining = remaining[1:]
        traces.append(trace)
    if remaining and not any("mapping" in trace.attrs for trace in traces):
        given = ", ".join(paths)
        raise WorkbenchError(
            f"--mapping {remaining[0]}: {given} is no dump; expected the dump that it describes"
        )
    return traces


def print_notes(traces: "Sequence[Trace]") -> None:
    """Print to stderr what importers noted, such as the mapping that was taken or lines that were skipped."""
    for trace in traces:
        for note in trace.attrs.get("notes", ()):
            print(f"note: {note}", file=sys.stderr)


def json_text(found: HasDict) -> str:
    """Return a result as JSON for a terminal or a file."""
    return json.dumps(found.to_dict(), indent=1, allow_nan=False)


def table_text(frame: "pd.DataFrame", digits: int = 3) -> str:
    """Return a table for a terminal, without its index."""
    return frame.to_string(index=False, float_format=f"{{:.{digits}g}}".format, na_rep="")
