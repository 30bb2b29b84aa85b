"""Measure how many defects the glitch detectors find, and how often they find one in clean speech.

Clean speech comes in corpora: what the bundled voice says, and folders of recordings. The thresholds of the
detectors were set on the recordings of data/prompts, on the sentences of `TUNED_ON` and on half of the real
recordings. The benchmark speaks the sentences of `REPORTED_ON`, on which no threshold was set.
`workbench bench glitches` prints its result, and data/accuracy/ holds it.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from tqdm import tqdm

from workbench.diagnose.glitches.analysis import as_sound
from workbench.diagnose.glitches.defects import DEFECTS, Defect, inject
from workbench.diagnose.glitches.detectors import DETECTORS
from workbench.diagnose.glitches.glitches import DEFECT, detect, find_glitches
from workbench.errors import WorkbenchError
from workbench.files import data_path
from workbench.speech.frontend.audio import resample
from workbench.speech.frontend.audio_files import read_wav
from workbench.speech.pipeline import Pipeline
from workbench.trace.trace import Trace

VOICES = ("kumo", "alpha", "gongitsune", "kumo_alpha", "nezumi", "tebukuro")
TUNED_ON = (
    "Eight months to Mars.",
    "The ship leaves at midnight, and nobody on the pier knows its name.",
    "She asked for a hot drink and sat down by the window.",
    "Can you hear the rain on the roof?",
    "They walked along the river until the lights went out.",
    "The old clock in the hall had stopped at noon.",
    "Please close the door before the wind blows it shut.",
    "He never found the letter that she wrote to him.",
    "A small bird sat on the fence and sang all morning.",
    "We have two hours to finish the work.",
    "The teacher spoke slowly, so that everybody could follow.",
    "Nobody expected the answer to be so simple.",
    "The road to the village was closed because of the snow.",
    "My brother keeps three black cats in his kitchen.",
    "It took them a week to cross the desert.",
    "Would you like some bread with your soup?",
    "The judge listened to both sides and said nothing.",
    "Her garden is full of yellow flowers in spring.",
    "Turn left at the church and walk up the hill.",
    "The children were playing with a wooden boat.",
    "I forgot to bring my glasses, so I cannot read the sign.",
    "A strange light moved across the evening sky.",
    "They built the bridge in less than a year.",
    "The doctor told him to drink more water.",
    "She opened the box and found an old silver coin.",
    "We should leave early to avoid the crowd.",
    "The farmer sold his horses and bought a truck.",
    "There was a long silence after the speech.",
    "He put the keys on the table and went to bed.",
    "The museum is free on the first day of the month.",
)
REPORTED_ON = (
    "The bus to the airport leaves from the other side.",
    "Her uncle collects stamps from distant countries.",
    "It began to rain as soon as we sat down.",
    "Do you take sugar and milk in your tea?",
    "The painter mixed blue and white on a board.",
    "Nothing grows in this valley but grass.",
    "Walk past the bakery and cross the bridge.",
    "Four white swans were sleeping near the shore.",
    "I read the whole book on the way to London.",
    "The stars are bright when the air is cold.",
    "All the windows on the north side were broken.",
    "The dentist showed her how to brush her teeth.",
    "He signed the paper without reading a word.",
    "We could hear the waves from our tent.",
    "The soldiers marched through the empty town.",
    "She waved to us from the deck of the ferry.",
    "Half of the apples had already gone bad.",
    "The king gave the land to his youngest son.",
    "Who has been using my towel?",
    "This hat belongs to a friend of mine.",
    "They cooked fish over an open fire.",
    "Are there any seats left for the evening show?",
    "The shop on the corner sells old records.",
    "A good map would have shown us the way.",
)
MAX_DISTANCE_S = 0.05  # seconds between a finding and the defect that it is counted for
MIN_SECONDS = 1.2  # shorter utterances have no room for some defects
SOUND_FILES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
SEVERITIES = ("1", "2", "3", "4")  # columns of the table
VOICE = "bundled voice"  # the corpus that a pipeline speaks
NAN = float("nan")
KEPT = ("options", "checkpoint")  # attributes that say that an utterance was synthesised
FILES = "files"  # the corpus of recordings that are named one by one
# With one step of the ODE the whole utterance is smeared. A trace shows that in its mel as well.
ONE_STEP_KINDS = {"wav": ("smear", "buzz"), "trace": ("smear", "buzz", "mel", "off mel")}


class Clean(NamedTuple):
    """One utterance of clean speech."""

    corpus: str
    name: str
    trace: Trace


class DetectorQuality(NamedTuple):
    """The result of the benchmark."""

    table: pd.DataFrame  # see `summary`
    alarms: pd.DataFrame  # see `false_alarms`
    rates: pd.DataFrame  # see `alarm_rates`


def measure_detectors(
    pipe: Pipeline, clean: Sequence[Clean], sample_rates: Sequence[int] = ()
) -> DetectorQuality:
    """Measure the share of defects found and the false alarms, on utterances of clean speech.

    Parameters
    ----------
    pipe : Pipeline
        The voice that spoke some of them; it renders these again with one step of the ODE.
    clean : sequence of Clean
        `[*spoken(pipe, REPORTED_ON), *recordings(paths)]`
    sample_rates : sequence of int
        Hz; false alarms are also counted in all utterances resampled to these. Defects are made at the
        utterances' own rates.
    """
    alarms = false_alarms([*clean, *resampled(clean, sample_rates)])
    table = summary(detection(clean), one_step(pipe, clean))
    return DetectorQuality(table, alarms, alarm_rates(alarms))


def recordings(paths: Iterable[str | os.PathLike]) -> Iterator[Clean]:
    """Yield sound files as traces with only a waveform; the name of a folder is that of its corpus.

    Raises
    ------
    WorkbenchError
        For a path that is neither, a folder without sound files, and a file that no detector can read.
    """
    for path in map(Path, paths):
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SOUND_FILES)
            if not files:
                raise WorkbenchError(f"{path} has no sound files; expected some of {', '.join(SOUND_FILES)}")
        for file in files:
            wav, rate = read_wav(file)
            try:
                as_sound(wav, rate)
            except WorkbenchError as error:
                raise WorkbenchError(f"{file}: {error}") from None
            trace = Trace({"hift/wav": wav}, {"sample_rate": rate})
            yield Clean(path.name if path.is_dir() else FILES, file.name, trace)


def spoken(
    pipe: Pipeline, sentences: Iterable[str], prompts: str | os.PathLike | None = None
) -> Iterator[Clean]:
    """Speak sentences; each prompt of the folder `prompts` (data/prompts by default) has its turn."""
    folder = data_path("prompts") if prompts is None else Path(prompts)
    for i, text in enumerate(sentences):
        take = i // len(VOICES) % 2  # there are two recordings of each voice
        prompt = folder / f"{VOICES[i % len(VOICES)]}_{take}.flac"
        yield Clean(VOICE, text, pipe.synthesise(pipe.prepare(text, prompt), seed=i))


def resampled(clean: Iterable[Clean], sample_rates: Sequence[int]) -> Iterator[Clean]:
    """Yield the waveforms of utterances at other sample rates; what else their traces hold is left out."""
    for corpus, name, trace in clean:
        for rate in sample_rates:
            if rate != trace.sample_rate:
                about = {"sample_rate": rate} | {key: trace.attrs[key] for key in KEPT if key in trace.attrs}
                wav = resample(trace.wav, trace.sample_rate, rate)
                yield Clean(corpus, name, Trace({"hift/wav": wav}, about))


def measure_clean_scores(clean: Iterable[Clean]) -> dict[str, list[float]]:
    """Return by kind the highest score of every utterance, sorted.

    `clean_scores.json` holds them; `Finding.percentile` is the share that a finding's score exceeds.
    """
    found: dict[str, list[float]] = {kind: [] for kind in DETECTORS}
    for _, _, trace in clean:
        sound = as_sound(trace)
        for kind, detector in DETECTORS.items():
            scores = [spot.score for spot in detector.find(sound)]
            if scores:
                found[kind].append(round(max(scores), 4))
    return {kind: sorted(scores) for kind, scores in found.items()}


def false_alarms(clean: Iterable[Clean]) -> pd.DataFrame:
    """Return every finding in clean speech.

    Returns
    -------
    DataFrame
        `corpus`, `rate` (Hz), `utterance`, `kind`, `severity`, `start` (seconds), `score`.
        `attrs["minutes"]` is the length of the speech by corpus and rate.
    """
    rows = []
    minutes: dict[tuple[str, int], float] = {}
    for corpus, name, trace in clean:
        place = (corpus, trace.sample_rate)
        minutes[place] = minutes.get(place, 0.0) + trace.seconds / 60
        found = find_glitches(trace)
        both = pd.concat([found.table, found.properties]) if len(found.properties) else found.table
        for finding in both.itertuples():
            rows.append((*place, name, finding.kind, finding.severity, finding.start, finding.score))
    columns = ["corpus", "rate", "utterance", "kind", "severity", "start", "score"]
    table = pd.DataFrame(rows, columns=columns)
    table.attrs["minutes"] = minutes
    return table


def alarm_rates(alarms: pd.DataFrame) -> pd.DataFrame:
    """Count findings in clean speech by corpus, sample rate and kind.

    Returns
    -------
    DataFrame
        `corpus`, `rate` (Hz), `minutes`, `defects/min`, `which` (their number by kind), `properties/min`.
    """
    rows = []
    for (corpus, rate), minutes in alarms.attrs["minutes"].items():
        here = alarms[(alarms["corpus"] == corpus) & (alarms["rate"] == rate)]
        defects = here[here["severity"] == DEFECT]
        counts = defects["kind"].value_counts()
        which = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        n_others = len(here) - len(defects)
        rows.append((corpus, rate, minutes, len(defects) / minutes, which, n_others / minutes))
    return pd.DataFrame(rows, columns=["corpus", "rate", "minutes", "defects/min", "which", "properties/min"])


def detection(clean: Iterable[Clean]) -> pd.DataFrame:
    """Make every defect of every severity in every utterance; return which share is found.

    An utterance in which the detectors of a defect find something already is left out for this defect.

    Returns
    -------
    DataFrame
        `corpus`, `kind`, `severity` (1..4), `magnitude`, `unit`, `found` (share, 0..1), `n` (utterances).
    """
    corpora: dict[str, list[Trace]] = {}
    for corpus, _, trace in clean:
        if trace.seconds >= MIN_SECONDS:
            corpora.setdefault(corpus, []).append(trace)
    rows = []
    for corpus, traces in corpora.items():
        sounds = [as_sound(trace) for trace in traces]
        for kind, defect in tqdm(DEFECTS.items(), f"defects, {corpus}", unit=" kind", leave=False):
            has_it = [any(detect(finder, sound) for finder in defect.finders) for sound in sounds]
            for severity, magnitude in enumerate(defect.magnitudes, 1):
                hits = []
                for seed, trace in enumerate(traces):
                    if not has_it[seed]:
                        hits.append(_is_found(trace, kind, defect, severity, seed))
                share = sum(hits) / max(len(hits), 1)
                rows.append((corpus, kind, severity, magnitude, defect.unit, share, len(hits)))
    columns = ["corpus", "kind", "severity", "magnitude", "unit", "found", "n"]
    return pd.DataFrame(rows, columns=columns)


def one_step(pipe: Pipeline, clean: Iterable[Clean]) -> pd.DataFrame:
    """Render the tokens of every utterance with one step of the ODE; return which renders are found.

    Returns
    -------
    DataFrame
        One row per utterance with tokens: whether something is found in the waveform alone (`wav`), and in
        the trace (`trace`).
    """
    options = pipe.checkpoint.options.but(n_timesteps=1)
    rows = []
    for _, _, trace in clean:
        if "lm/speech_token" in trace:
            sound = as_sound(pipe.replay(trace, "flow", options))
            rows.append([any(detect(kind, sound) for kind in kinds) for kinds in ONE_STEP_KINDS.values()])
    return pd.DataFrame(rows, columns=list(ONE_STEP_KINDS))


def summary(found: pd.DataFrame, renders: pd.DataFrame) -> pd.DataFrame:
    """Gather the results of `detection` and `one_step` in one table.

    Returns
    -------
    DataFrame
        One row per corpus and kind of defect: `corpus`, `kind`, `severities` (their magnitudes), the
        percentage found at each severity, `1` to `4`, and `n` utterances. One step of the ODE has a single
        percentage.
    """
    rows = []
    for (corpus, kind), part in found.groupby(["corpus", "kind"], sort=False):
        magnitudes = " / ".join(f"{magnitude:g}" for magnitude in part["magnitude"])
        unit, n = part["unit"].iloc[0], int(part["n"].iloc[0])
        # The share of no utterances says nothing.
        shares = 100 * part["found"] if n else [NAN] * len(part)
        rows.append((corpus, kind, f"{magnitudes} {unit}", *shares, n))
    for name, percent in (100 * renders.mean()).items():
        rows.append((VOICE, "one step", f"of the ODE, {name}", NAN, NAN, NAN, percent, len(renders)))
    return pd.DataFrame(rows, columns=["corpus", "kind", "severities", *SEVERITIES, "n"])


def _is_found(trace: Trace, kind: str, defect: Defect, severity: int, seed: int) -> bool:
    """Make a defect in an utterance; return whether one of its detectors finds something there."""
    try:
        made = inject(trace.wav, trace.sample_rate, kind, severity, seed)
    except WorkbenchError:  # the utterance has too little speech
        return False
    attrs = {"sample_rate": trace.sample_rate}
    if made.seams:
        attrs["seams"] = made.seams
    sound = as_sound(Trace({"hift/wav": torch.as_tensor(made.wav)}, attrs))
    for finder in defect.finders:
        for spot in detect(finder, sound):
            if spot.start <= made.end + MAX_DISTANCE_S and spot.end >= made.start - MAX_DISTANCE_S:
                return True
    return False
