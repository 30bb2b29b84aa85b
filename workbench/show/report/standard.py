"""The two reports that everybody needs: of a run, and of two runs side by side."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.diagnose.benchmarks.accuracy import own_deviation
from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.comparison import Comparison
from workbench.diagnose.compare.plausibility import implausible
from workbench.diagnose.glitches.glitches import Findings, find_glitches
from workbench.diagnose.suspects.faults import CATALOGUE, Fault
from workbench.diagnose.suspects.suspects import Diagnosis, find_suspects
from workbench.errors import WorkbenchError
from workbench.show import plots
from workbench.show.player.player import player
from workbench.show.plots.axes import let_go
from workbench.show.report.report import Report
from workbench.speech.pipeline import Pipeline
from workbench.trace.trace import Trace

Draw = Callable[[], Any]


def run_report(trace: Trace, name: str = "run", pipe: Pipeline | None = None) -> Report:
    """Return what there is to see and hear of one run.

    Parameters
    ----------
    trace : Trace
        Of any origin; what it did not record is named at the end.
    name : str
        For the title.
    pipe : Pipeline, optional
        Of the checkpoint that ran: says how far a faster way of computing took the run from eager.
    """
    found = _heard(trace)
    lead = [_summary(trace, found), *_way(trace, pipe), *implausible(trace)]
    report = Report(f"Run: {name}", "\n".join(lead))
    if found is not None:
        report.add(player(trace, names=[name], findings=found), "Sound")
        report.add(found, "Findings", "Places that clean speech rarely has, in order of time.")
    report.add(origin({name: trace}), "Where it comes from")
    lacking = _add_figures(
        report,
        {
            "Waveform": lambda: plots.waveform(trace, findings=found),
            "Mel": lambda: plots.mel(trace),
            "F0": lambda: plots.f0(trace),
            "Speech tokens": lambda: plots.tokens(trace),
            "ODE": lambda: plots.trajectory(trace),
            "Guidance": lambda: plots.guidance_gap(trace),
        },
    )
    report.add(trace.to_frame(), "Every field")
    return _and_lacking(report, lacking)


def comparison_report(
    reference: Trace,
    candidate: Trace,
    pipe: Pipeline | None = None,
    names: tuple[str, str] = ("reference", "candidate"),
    catalogue: Sequence[Fault] = CATALOGUE,
) -> Report:
    """Return where two runs part, what caused it, which known mistake it looks like, and both to hear.

    Parameters
    ----------
    reference, candidate : Trace
    pipe : Pipeline, optional
        Of the checkpoint both should have run; without it no cause is isolated and no suspect is named.
    names : (str, str)
        What the report calls the two.
    catalogue : sequence of Fault
        Mistakes to look for.
    """
    compared = compare(reference, candidate, pipe)
    suspected = _suspected(reference, candidate, pipe, compared, catalogue)
    lead = [str(compared), *compared.input_differences]
    report = Report(
        f"{names[1]} beside {names[0]}", "\n".join([*lead, *([str(suspected)] if suspected else [])])
    )
    found = {name: _heard(trace) for name, trace in zip(names, (reference, candidate), strict=True)}
    heard = [
        (name, trace)
        for name, trace in zip(names, (reference, candidate), strict=True)
        if found[name] is not None
    ]
    if heard:
        sides = [trace for _, trace in heard]
        marks = [found[name] for name, _ in heard]
        report.add(player(*sides, names=[name for name, _ in heard], findings=marks), "Sound")
    report.add(compared, "Where they part", "Results in causal order, from the first that is wrong.")
    if suspected is not None:
        report.add(suspected, "Suspects", suspected.next_experiment)
    lacking = _add_figures(
        report,
        {
            "Error along the run": lambda: plots.comparison(compared),
            "Suspects drawn": lambda: plots.suspects(suspected) if suspected else None,
            "Mel difference": lambda: plots.mel_difference(reference, candidate),
            "ODE": lambda: plots.trajectory(candidate, reference=reference),
            "Guidance": lambda: plots.guidance_gap(candidate, reference=reference),
            "F0": lambda: plots.f0(candidate, reference=reference),
        },
    )
    for name, _ in heard:
        report.add(found[name], f"Findings: {name}")
    report.add(origin(dict(zip(names, (reference, candidate), strict=True))), "Where they come from")
    return _and_lacking(report, lacking)


def origin(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Return a row for everything that runs say about themselves, a column a run."""
    return pd.DataFrame(
        {name: pd.Series(_facts(trace), dtype=object) for name, trace in traces.items()}
    ).fillna("")


def _facts(trace: Trace) -> dict[str, str]:
    """What a run says of itself; options among them, dictionaries opened."""
    flat: dict[str, str] = {}
    for name, value in trace.attrs.items():
        for key, part in value.items() if isinstance(value, dict) else [("", value)]:
            flat[f"{name}.{key}" if key else name] = str(part)
    return flat


def _heard(trace: Trace) -> Findings | None:
    """Findings of a run that has sound."""
    return find_glitches(trace) if "hift/wav" in trace and len(trace.wav) else None


def _summary(trace: Trace, found: Findings | None) -> str:
    if found is None:
        return "This run recorded no sound."
    return f"{trace.seconds:.2f} s of sound. {found!r}"


def _way(trace: Trace, pipe: Pipeline | None) -> list[str]:
    """What another way of computing than the eager one did to a run."""
    options = trace.attrs.get("options")
    way = options.get("compute", "eager") if isinstance(options, dict) else "eager"
    if way == "eager":
        return []
    if pipe is None:
        return [f"Computed {way!r}. Give the voice that ran to see how far that is from eager."]
    try:
        apart = own_deviation(pipe, trace)
    except WorkbenchError as error:
        return [f"Computed {way!r}. How far that is from eager cannot be told: {error}"]
    return [
        f"Computed {way!r}. Of its tokens eager makes a mel {apart['mel_l1']:.2g} nat away and a sound "
        f"{apart['sound_db']:.2g} dB away; of its mel, a sound with an SNR of {apart['snr_db']:.0f} dB."
    ]


def _suspected(
    reference: Trace,
    candidate: Trace,
    pipe: Pipeline | None,
    compared: Comparison,
    catalogue: Sequence[Fault],
) -> Diagnosis | None:
    if pipe is None or compared.ok:
        return None
    try:
        return find_suspects(reference, candidate, pipe, catalogue)
    except WorkbenchError:  # too little was recorded to ask
        return None


def _add_figures(report: Report, figures: Mapping[str, Draw]) -> list[str]:
    """Add the figures that the runs recorded enough for; what the others lack."""
    lacking = []
    for title, draw in figures.items():
        try:
            figure = draw()
        except WorkbenchError as error:
            lacking.append(f"{title}: {error}")
        else:
            if figure is not None:
                report.add(figure, title)
                let_go(figure)
    return lacking


def _and_lacking(report: Report, lacking: list[str]) -> Report:
    return report.add("\n\n".join(lacking), "Not shown, and why") if lacking else report
