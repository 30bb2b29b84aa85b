"""The two usual reports: of one run, and of two runs side by side."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.diagnose.benchmarks.accuracy import own_deviation
from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.comparison import Comparison
from workbench.diagnose.compare.plausibility import implausible
from workbench.diagnose.glitches.glitches import Findings, find_glitches
from workbench.diagnose.open import open
from workbench.diagnose.suspects.catalogue.faults import CATALOGUE, Fault
from workbench.diagnose.suspects.diagnosis import Diagnosis
from workbench.diagnose.suspects.suspects import find_suspects
from workbench.errors import WorkbenchError
from workbench.show import plots
from workbench.show.player.listening import ListeningTest
from workbench.show.player.player import player
from workbench.show.plots.axes import close_figures
from workbench.show.report.report import Report
from workbench.speech.pipeline import Pipeline
from workbench.trace.print_errors import HALF_UNITS
from workbench.trace.trace import Trace

Draw = Callable[[], Any]
UNDECIDED = ("ALIKE", "MISSING", "NOT COMPARABLE")  # verdicts that prove neither


def run_report(trace: Trace | str | os.PathLike, name: str = "run", pipe: Pipeline | None = None) -> Report:
    """Return a report of one run: sound, findings, figures and all fields.

    Parameters
    ----------
    trace : Trace or path
        Of any origin; a path as in `wb.open`. Figures that need fields which it did not record are listed
        near the end with the reason.
    name : str
        The run's name in the title.
    pipe : Pipeline, optional
        Pipeline of the checkpoint that ran. With it the report states how far a faster way of computing took
        the run from eager.

    Returns
    -------
    Report

    Examples
    --------
    >>> report = wb.run_report(trace, "seed 7")
    >>> [section.title for section in report.sections][:3]
    ['Sound', 'Findings', 'Waveform']
    """
    trace = open(trace)
    findings = _find_glitches(trace)
    odd = implausible(trace)
    notes = [*_compute_note(trace, pipe), *_quantised(trace), *_warnings(trace)]
    lead = [_summary(trace, findings), *notes, *odd]
    report = Report(f"Run: {name}", "\n".join(lead), state=_state_of_run(findings, odd))
    if findings is not None:
        report.add(player(trace, names=[name], findings=findings), "Sound")
        report.add(findings, "Findings", "Places that clean speech rarely has, in order of time.")
    figures = {
        "Waveform": lambda: plots.waveform(trace, findings=findings),
        "Mel": lambda: plots.mel(trace),
        "F0": lambda: plots.f0(trace),
        "Speech tokens": lambda: plots.tokens(trace),
        "ODE": lambda: plots.trajectory(trace),
        "Guidance": lambda: plots.guidance_gap(trace),
    }
    omitted = _add_figures(report, figures)
    report.add(trace.to_frame(), "Every field")
    _add_omitted(report, omitted)
    return report.add(provenance_table({name: trace}), "Where it comes from")


def comparison_report(
    reference: Trace | str | os.PathLike,
    candidate: Trace | str | os.PathLike,
    pipe: Pipeline | None = None,
    names: tuple[str, str] = ("reference", "candidate"),
    catalogue: Sequence[Fault] = CATALOGUE,
    listening: ListeningTest | None = None,
) -> Report:
    """Return a report of two runs: where they part, why, which known fault explains it, and the sound.

    Parameters
    ----------
    reference, candidate : Trace or path
        A path as in `wb.open`.
    pipe : Pipeline, optional
        Pipeline of the checkpoint that both should have run. Without it no cause is isolated and no suspect
        is named.
    names : (str, str)
        What the report calls the two.
    catalogue : sequence of Fault
        The faults to consider.
    listening : ListeningTest, optional
        A blind test of the two, as `wb.listening_test` reads it.

    Returns
    -------
    Report

    Examples
    --------
    >>> wb.comparison_report(trace, trace).title
    'candidate beside reference'
    """
    reference, candidate = open(reference), open(candidate)
    compared = compare(reference, candidate, pipe)
    diagnosis = _diagnose(reference, candidate, pipe, compared, catalogue)
    lead = [str(compared)]
    if diagnosis is not None:
        lead.append(str(diagnosis))
    lead += compared.input_differences
    for name, trace in zip(names, (reference, candidate), strict=True):
        lead += [f"{name}: {sentence}" for sentence in (*_quantised(trace), *_warnings(trace))]
    state = _state_of_comparison(compared)
    report = Report(f"{names[1]} beside {names[0]}", "\n".join(lead), state=state)
    audible = []  # (name, trace, findings) of the runs that have sound
    for name, trace in zip(names, (reference, candidate), strict=True):
        findings = _find_glitches(trace)
        if findings is not None:
            audible.append((name, trace, findings))
    if audible:
        audible_names, traces, all_findings = zip(*audible, strict=True)
        report.add(player(*traces, names=audible_names, findings=all_findings), "Sound")
    if listening is not None:
        report.add(listening, "Blind test")
    for name, _, findings in audible:
        report.add(findings, f"Findings: {name}")
    order = f"{names[1]} measured against {names[0]}, in causal order, from the first result that is wrong."
    report.add(compared, "Where they part", order)
    if diagnosis is not None:
        report.add(diagnosis, "Suspects", diagnosis.next_experiment)
    figures = {
        "Error along the run": lambda: plots.comparison(compared),
        "Suspects drawn": lambda: plots.suspects(diagnosis) if diagnosis else None,
        "Mel difference": lambda: plots.mel_difference(reference, candidate, names=names),
        "ODE": lambda: plots.trajectory(candidate, reference=reference, names=names),
        "Guidance": lambda: plots.guidance_gap(candidate, reference=reference, names=names),
        "F0": lambda: plots.f0(candidate, reference=reference, names=names),
    }
    omitted = _add_figures(report, figures)
    _add_omitted(report, omitted)
    origins = provenance_table(dict(zip(names, (reference, candidate), strict=True)))
    return report.add(origins, "Where they come from")


def provenance_table(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Return the attributes of traces: one row per attribute, one column per trace."""
    columns = {name: pd.Series(_flat_attributes(trace), dtype=object) for name, trace in traces.items()}
    return pd.DataFrame(columns).fillna("")


def _flat_attributes(trace: Trace) -> dict[str, str]:
    """Return the attributes of a trace as text; an entry of a dictionary is named `options.seed`."""
    flat: dict[str, str] = {}
    for name, value in trace.attrs.items():
        if name == HALF_UNITS:  # a number for each number of a log
            continue
        if not isinstance(value, dict):
            flat[name] = str(value)
            continue
        for key, part in value.items():
            is_seconds = name == "timings" and isinstance(part, float)
            flat[f"{name}.{key}"] = f"{part:.3g} s" if is_seconds else str(part)
    return flat


def _find_glitches(trace: Trace) -> Findings | None:
    """Return the findings of a run; None for a run without sound."""
    return find_glitches(trace) if "hift/wav" in trace and len(trace.wav) else None


def _state_of_run(findings: Findings | None, odd: Sequence[str]) -> str:
    """Return the state; "open" for a run without sound in which nothing odd was seen."""
    if odd or findings:
        return "bad"
    return "open" if findings is None else "good"


def _state_of_comparison(compared: Comparison) -> str:
    """Return the state; "open" where too little was compared to say that the runs agree or differ."""
    if compared.ok:
        return "good"
    return "open" if compared.objection or compared.verdict in UNDECIDED else "bad"


def _summary(trace: Trace, findings: Findings | None) -> str:
    if findings is None:
        return "This run recorded no sound."
    return f"{trace.seconds:.2f} s of sound. {findings!r}"


def _warnings(trace: Trace) -> list[str]:
    """Return what was said of the text and the prompt before the run."""
    found = trace.attrs.get("warnings")
    return [f"Before the run: {sentence}" for sentence in found] if isinstance(found, list) else []


def _quantised(trace: Trace) -> list[str]:
    """Return which formats the weights of each stage had; nothing for weights as they are in the files."""
    return [f"Weights of {stage}: {text}." for stage, text in trace.attrs.get("quantised", {}).items()]


def _compute_note(trace: Trace, pipe: Pipeline | None) -> list[str]:
    """Return a line on how far a run is from eager; none for a run that was computed eagerly."""
    options = trace.attrs.get("options")
    compute = options.get("compute", "eager") if isinstance(options, dict) else "eager"
    if compute == "eager":
        return []
    compute = trace.attrs.get("way", compute)
    if pipe is None:
        return [f"Computed {compute!r}. Give the voice that ran to see how far that is from eager."]
    try:
        deviation = own_deviation(pipe, trace)
    except WorkbenchError as error:
        return [f"Computed {compute!r}. Its distance from eager is unknown: {error}"]
    return [
        f"Computed {compute!r}. From the same tokens eager makes a mel that differs by "
        f"{deviation['mel_l1']:.2g} nat and a sound that differs by {deviation['sound_db']:.2g} dB; from the "
        f"same mel, a sound with an SNR of {deviation['snr_db']:.0f} dB."
    ]


def _diagnose(
    reference: Trace,
    candidate: Trace,
    pipe: Pipeline | None,
    compared: Comparison,
    catalogue: Sequence[Fault],
) -> Diagnosis | None:
    """Return the suspects; None where the runs agree or too little is known to look for them."""
    if pipe is None or compared.ok:
        return None
    try:
        return find_suspects(reference, candidate, pipe, catalogue)
    except WorkbenchError:  # too little was recorded
        return None


def _add_figures(report: Report, figures: Mapping[str, Draw]) -> list[str]:
    """Add the figures that the runs recorded enough for, and return why the others are omitted."""
    omitted = []
    for title, draw in figures.items():
        try:
            figure = draw()
        except WorkbenchError as error:
            omitted.append(f"{title}: {error}")
        else:
            if figure is not None:
                report.add(figure, title)
                close_figures(figure)
    return omitted


def _add_omitted(report: Report, omitted: list[str]) -> Report:
    return report.add("\n\n".join(omitted), "Not shown, and why") if omitted else report
