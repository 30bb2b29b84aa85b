"""Compare two runs field by field, find where they part, and whether the candidate made the error there.

`compare(reference, candidate, pipe)` is the entry point. It asks two questions about every field:

1. How far is the candidate from the reference, and is that more than rounding explains? What rounding
   explains is measured: the reference's run is repeated in float64, as far as that decides
   (`float64_run.py`).
2. Did the candidate make this error itself (*added*), or did it come with its inputs (*inherited*)? Every
   result is recomputed from the candidate's own inputs (`added_errors.py`); if that gives what the candidate
   has, the error was inherited.

Without a pipeline only the first question is answered, with a fixed tolerance.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.compare import statistics
from workbench.diagnose.compare.added_errors import Errors, Place, added_errors, causes_of, format_hints
from workbench.diagnose.compare.comparison import EQUAL, Comparison
from workbench.diagnose.compare.distance import hints, measure, relative, where_is
from workbench.diagnose.compare.float64_run import Float64Run, float64_run_of
from workbench.diagnose.compare.plausibility import implausible, inconsistent_lengths
from workbench.diagnose.compare.rounding import STREAMING, StoredRun, checkpoint_objection
from workbench.diagnose.compare.transitions import (
    PROGRAMS,
    entry_or_none,
    loop_dimension,
    target_fields,
    transitions,
)
from workbench.diagnose.layerwise import layerwise
from workbench.speech.config import Options
from workbench.speech.config.formats import rules_text
from workbench.speech.pipeline import Pipeline
from workbench.trace.importers.open_run import open_run
from workbench.trace.print_errors import with_half_units
from workbench.trace.schema import FIELDS, dims_of
from workbench.trace.storage import Storage, beyond_storage
from workbench.trace.trace import Trace

DEFAULT_TOLERANCE = 1e-5  # relative L2 taken for rounding without a checkpoint to measure it
INPUT_TOLERANCE = 1e-3  # relative L2 of inputs: other front ends differ by rounding, other prompts by more
HASH_DIGITS = 12  # enough to tell checkpoints apart, short enough to read
# The excitation's phase is a sum over all earlier f0, so that a tiny f0 error grows along the utterance.
PHASE_DEPENDENT = ("hift/source", "hift/magnitude", "hift/phase", "hift/wav")
PHASE_NOTE = "advisory: the phase of the excitation follows every f0 before it"
COLUMNS = [
    *("field", "index", "verdict", "rel_l2", "allowed", "added", "added_allowed", "of_format"),
    *("max_abs", "rms", "snr_db", "cosine", "norm_ratio", "nonfinite", "prompt", "target"),
    *("worst", "seconds", "note"),
]


def compare(
    reference: Trace | str | os.PathLike,
    candidate: Trace | str | os.PathLike,
    pipe: Pipeline | None = None,
    weights: str | Mapping[str, str] | os.PathLike | None = None,
) -> Comparison:
    """Compare two runs of the same utterance.

    Parameters
    ----------
    reference, candidate : Trace or path
        The candidate may be partial: a field that it lacks is MISSING, never equal. A path is a saved
        trace, a dump for which a shipped mapping fits, or a text log; "server.log#2" is a log's second run.
        Where one side recorded only statistics, those
        are compared.
    pipe : Pipeline, optional
        Of the checkpoint that both should have run. It measures what rounding explains, and finds the places
        where the candidate adds an error. Without it a relative L2 of 1e-5 counts as rounding.
    weights : str, mapping of str to str, or Path, optional
        Formats of the candidate's quantised weights, as in `Options`, where its record does not say them:
        what they explain is no error. `find_suspects` names a format that is not known.

    Returns
    -------
    Comparison

    Raises
    ------
    WorkbenchError
        When a path cannot be read as a run.

    Examples
    --------
    >>> wb.compare(trace, trace, pipe)
    MATCH
    >>> options = pipe.options(None).but(seed=7, head_dtype="float16")
    >>> half = pipe.replay(trace, "hift", options, save=wb.EVERYTHING)
    >>> found = wb.compare(trace, half)
    >>> found.input_differences
    ["option head_dtype: 'float32' and 'float16'"]
    """
    pipe = None if pipe is None else layerwise(pipe)
    reference, candidate = with_half_units(open_run(reference)), with_half_units(open_run(candidate))
    candidate, numbering = statistics.renumbered(reference, candidate)
    if weights is not None:
        recorded = candidate.attrs.get("options", {}) | {"weights": rules_text(weights)}
        candidate = Trace(candidate.data, candidate.attrs | {"options": recorded})
    input_differences = _input_differences(reference, candidate)
    same_tokens = not any(text.startswith(("lm/speech_token", "in/")) for text in input_differences)
    same_start = not any(text.startswith("first_step") for text in input_differences)
    options = _options(candidate, reference, pipe)

    # What rounding explains at each place: the reference against its own run in float64.
    is_stream = any(side.attrs.get("streaming") for side in (reference, candidate))
    float64_run = None if is_stream else float64_run_of(reference, pipe)
    # What the candidate adds at each place. Fields of different runs cannot be recomputed from each other.
    added: Errors = {}
    unchecked: dict[str, str] = {}
    stored_reference, stored = StoredRun(reference), StoredRun(candidate)
    storages = [stored_reference.coarse, dict(stored.coarse)]  # as stored; `added_errors` may drop a form
    storage_notes = stored.describe()
    objection = ""
    target_only = target_fields(reference, candidate)
    if pipe is not None and is_stream:
        unchecked["everything"] = STREAMING
    elif pipe is not None:
        objection = checkpoint_objection(stored_reference, pipe, _options(reference, reference, pipe))
        if objection:
            unchecked["everything"] = "the reference is not what this checkpoint gives"
        elif inconsistent_lengths(candidate) and not target_only:
            unchecked["everything"] = "the candidate's fields are not of one run"
        else:
            added, unchecked = added_errors(stored, pipe, options, target_only)

    rows = []
    for field, index in _places(reference, candidate):
        row = {"field": field, "index": index, "note": ""}
        row.update(_compare_place(reference, candidate, field, index, float64_run, storages))
        if row["verdict"] == "DIVERGED":
            _excuse_divergence(row, same_tokens, same_start)
        if (field, index) in added:
            found = added[field, index]
            row |= {"added": found.error, "added_allowed": found.allowed, "of_format": found.of_format}
        rows.append(row)
    _excuse_grown_rounding({(row["field"], row["index"]): row for row in rows}, candidate)
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    table["index"] = table["index"].astype("Int64")

    all_hints = [
        *_single_trace_hints("reference", reference),
        *_single_trace_hints("candidate", candidate),
        *_program_hints(reference, candidate),
        *hints(reference, candidate, table),
        *statistics.hints(table),
    ]
    all_hints += [f"candidate: {text}" for text in (*numbering, *storage_notes)]
    all_hints += format_hints(added, options.weights)
    causes = None if objection or pipe is None else causes_of(added)
    return Comparison(table, input_differences, all_hints, causes, unchecked, objection)


def _excuse_divergence(row: dict[str, Any], same_tokens: bool, same_start: bool) -> None:
    """Change the verdict or the note of a diverged row where there is a reason to expect a difference."""
    field = row["field"]
    if not same_tokens and field.startswith(("flow/", "hift/")):
        row.update(verdict="NOT COMPARABLE", note="other speech tokens")
    elif not same_start and field.startswith("flow/") and loop_dimension(field):
        row.update(verdict="NOT COMPARABLE", note="the recorded steps begin elsewhere")
    elif field in PHASE_DEPENDENT:
        row["note"] = f"{row['note']}; {PHASE_NOTE}" if row["note"] else PHASE_NOTE


def _excuse_grown_rounding(rows: Mapping[Place, dict[str, Any]], candidate: Trace) -> None:
    """Call a difference ROUNDING where it grew from the rounding of the inputs.

    The excitation, for example, adds up the phase of all f0 before, so that it amplifies their rounding. A
    result is excused where all its inputs agree but for rounding, and it is right on its own inputs.
    """
    rows_of_field: dict[str, list[dict[str, Any]]] = {}
    for (field, _), row in rows.items():
        rows_of_field.setdefault(field, []).append(row)
    for step in transitions(candidate):
        of_inputs = [row["verdict"] for field in step.inputs for row in rows_of_field.get(field, [])]
        if rows_of_field.keys() >= set(step.inputs) and all(verdict in EQUAL for verdict in of_inputs):
            for field in step.outputs:
                row = rows.get((field, step.index), {})
                if row.get("verdict") == "DIVERGED" and row.get("added", math.inf) <= row.get(
                    "added_allowed", 0.0
                ):
                    row.update(verdict="ROUNDING", note="grown from rounding; right on its own inputs")


# ---- what the runs were given


def _input_differences(reference: Trace, candidate: Trace) -> list[str]:
    """Return a sentence for everything that the two runs were given and that differs."""
    found = []
    a, b = reference.attrs, candidate.attrs
    for key in ("text", "sample_rate", "mode", "first_step", "prompt_frames"):
        if key in a and key in b and a[key] != b[key]:
            found.append(f"{key}: {a[key]!r} and {b[key]!r}")

    a_hash, b_hash = (attrs.get("checkpoint", {}).get("content_hash") for attrs in (a, b))
    if a_hash and b_hash and a_hash != b_hash:
        found.append(f"weights: {a_hash[:HASH_DIGITS]} and {b_hash[:HASH_DIGITS]}")

    a_options, b_options = a.get("options", {}), b.get("options", {})
    for key in sorted(a_options.keys() & b_options.keys()):
        # Another program computes the same model; `_program_hints` names it.
        if a_options[key] != b_options[key] and key not in PROGRAMS:
            found.append(f"option {key}: {a_options[key]!r} and {b_options[key]!r}")

    for name in FIELDS:
        is_input = name.startswith("in/") or name == "lm/speech_token"
        if is_input and name in reference and name in candidate:
            difference = _describe_input_difference(reference[name], candidate[name])
            if difference:
                found.append(f"{name}: {difference}")
    return found + statistics.shape_differences(reference, candidate)


def _describe_input_difference(x: Tensor, y: Tensor) -> str:
    """Return how two inputs differ; empty where they agree."""
    if x.shape != y.shape:
        return f"shapes {tuple(x.shape)} and {tuple(y.shape)}"
    if x.is_floating_point():
        error = relative(x, y)
        return f"relative L2 {error:.2g}" if error > INPUT_TOLERANCE else ""
    if torch.equal(x, y):
        return ""
    differs = x != y
    first = int(differs.nonzero()[0, 0])
    return f"{int(differs.sum())} of {len(x)} differ, the first at {first}"


def _options(candidate: Trace, reference: Trace, pipe: Pipeline | None) -> Options:
    """Return the options to recompute with: the candidate's, else the reference's, else the checkpoint's.

    Options that no run can have raise a WorkbenchError, also without a pipeline.
    """
    recorded = reference.attrs.get("options", {}) | candidate.attrs.get("options", {})
    default = Options() if pipe is None else pipe.checkpoint.options
    return default.but(**recorded)


def _single_trace_hints(side: str, trace: Trace) -> list[str]:
    """Return what is odd about one run without the other: import notes, lengths, values."""
    found = [*trace.attrs.get("notes", ()), *inconsistent_lengths(trace), *implausible(trace)]
    return [f"{side}: {text}" for text in found]


def _program_hints(reference: Trace, candidate: Trace) -> list[str]:
    """Name the programs that computed velocities and spectra, where they differ."""
    found = []
    for name in PROGRAMS:
        a, b = (trace.attrs.get(name) for trace in (reference, candidate))
        if a and b and a != b:
            found.append(f"{name}: {a} and {b}")
    return found


# ---- which places to compare, and how


def _places(reference: Trace, candidate: Trace) -> Iterator[Place]:
    """Yield every place to compare, in causal order.

    A field that grows in a loop is compared entry by entry; a field that one side lacks is one place. Fields
    of the ODE take turns: all of them at index 0, then all at index 1, and so on, so that the velocities of
    step k come before the state at knot k + 1.
    """
    sides = (reference, candidate)
    names = []  # recorded by either side
    entry_counts = {}  # of the loop fields that both sides recorded
    for name in FIELDS:
        recorded_by = [side for side in sides if statistics.has_field(side, name)]
        if recorded_by:
            names.append(name)
        if len(recorded_by) == 2 and loop_dimension(name):
            entry_counts[name] = max(statistics.entry_count(side, name) for side in sides)
    ode_fields = [name for name in entry_counts if name.startswith("flow/")]

    for name in names:
        if name not in entry_counts:
            yield name, None
            continue
        if name not in ode_fields:
            fields = [name]
        elif name == ode_fields[0]:
            fields = ode_fields
        else:
            continue  # compared together with the first ODE field
        for index in range(max(entry_counts[field] for field in fields)):
            for field in fields:
                # A log may skip entries: the statistics of these are NaN on both sides.
                if any(statistics.has_entry(side, field, index) for side in sides):
                    yield field, index


def _compare_place(
    reference: Trace,
    candidate: Trace,
    field: str,
    index: int | None,
    float64_run: Float64Run | None,
    storages: Sequence[Mapping[str, Storage]],
) -> dict[str, Any]:
    """Return the verdict and the numbers of one place.

    `float64_run` tells the relative L2 of rounding; `storages` says how each side's fields were stored.
    """
    both_recorded = all(statistics.has_field(side, field) for side in (reference, candidate))
    both_tensors = field in reference and field in candidate
    if both_recorded and not both_tensors:
        # How far the values are is not known, so that rounding is measured in any case.
        allowed = DEFAULT_TOLERANCE if float64_run is None else float64_run.measured(field, index)
        compared = statistics.compare_statistics(reference, candidate, field, index, allowed)
        return {"allowed": allowed} | compared

    x, y = entry_or_none(reference, field, index), entry_or_none(candidate, field, index)
    if x is None or y is None:
        side = "reference" if x is None else "candidate"
        return {"verdict": "MISSING", "allowed": math.nan, "note": f"not in the {side}"}
    has_prompt = "frame" in dims_of(field)
    note = ""
    target = x[..., reference.prompt_frames :] if has_prompt else x
    if x.shape != y.shape == target.shape:
        x, has_prompt, note = target, False, "the candidate has the target's frames alone"
    if x.shape != y.shape:
        return {"verdict": "SHAPE", "allowed": math.nan, "note": f"{tuple(x.shape)} and {tuple(y.shape)}"}

    row = measure(x, y, reference.prompt_frames if has_prompt else None) | {"note": note}
    dims = dims_of(field)[0 if index is None else 1 :]
    if row["worst"]:
        row["worst"], row["seconds"] = where_is(dims, row["worst"], reference)
    else:  # a single number has no place
        row["worst"], row["seconds"] = "", float("nan")
    # Digits that either side lost in storage are no error.
    stored_x = beyond_storage(x, y, storages[0].get(field))
    stored_y = beyond_storage(y, stored_x, storages[1].get(field))
    distance = relative(stored_x, stored_y)
    allowed = DEFAULT_TOLERANCE if float64_run is None else float64_run.allowed(field, index, distance)
    if row["nonfinite"]:
        verdict = "NONFINITE"
    elif torch.equal(x.double(), y.double()):
        verdict = "MATCH"
    else:
        verdict = "ROUNDING" if distance <= allowed else "DIVERGED"
    return row | {"allowed": allowed, "verdict": verdict}
