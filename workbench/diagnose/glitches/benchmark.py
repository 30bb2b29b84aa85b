"""Measure how many defects the glitch detectors find, and how often they find one in clean speech.

Clean speech is what the bundled voice says, and recordings. The thresholds of the detectors were set on the
recordings of data/prompts and on the sentences of `TUNED_ON`. The benchmark uses the sentences of
`REPORTED_ON`, on which no threshold was set. `workbench bench glitches` prints its result, and data/accuracy/
holds it.
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
from workbench.diagnose.glitches.glitches import detect
from workbench.errors import WorkbenchError
from workbench.files import data_path
from workbench.speech.frontend.audio import read_wav
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
SOUND_FILES = (".flac", ".wav", ".ogg", ".opus")
SEVERITIES = ("1", "2", "3", "4")  # columns of the table
# With one step of the ODE the whole utterance is smeared. A trace shows that in its mel as well.
ONE_STEP_KINDS = {"wav": ("smear", "buzz"), "trace": ("smear", "buzz", "mel", "off mel")}


class Clean(NamedTuple):
    """One utterance of clean speech."""

    name: str
    trace: Trace


class DetectorQuality(NamedTuple):
    """The result of the benchmark."""

    table: pd.DataFrame  # see `summary`
    alarms: pd.DataFrame  # see `false_alarms`


def measure_detectors(pipe: Pipeline, clean: Sequence[Clean]) -> DetectorQuality:
    """Measure the share of defects found and the false alarms, on utterances of clean speech.

    Parameters
    ----------
    pipe : Pipeline
        The voice that spoke them; it renders them again with one step of the ODE.
    clean : sequence of Clean
        `[*spoken(pipe, REPORTED_ON), *recordings(paths)]`
    """
    alarms = false_alarms(clean)
    return DetectorQuality(summary(detection(clean), alarms, one_step(pipe, clean)), alarms)


def recordings(paths: Iterable[str | os.PathLike]) -> Iterator[Clean]:
    """Yield sound files, and those in folders, as traces with only a waveform."""
    for path in map(Path, paths):
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in SOUND_FILES)
        for file in files:
            wav, rate = read_wav(file)
            yield Clean(file.name, Trace({"hift/wav": wav}, {"sample_rate": rate}))


def spoken(
    pipe: Pipeline, sentences: Iterable[str], prompts: str | os.PathLike | None = None
) -> Iterator[Clean]:
    """Speak sentences; each prompt of the folder `prompts` (data/prompts by default) has its turn."""
    folder = data_path("prompts") if prompts is None else Path(prompts)
    for i, text in enumerate(sentences):
        take = i // len(VOICES) % 2  # there are two recordings of each voice
        prompt = folder / f"{VOICES[i % len(VOICES)]}_{take}.flac"
        yield Clean(text, pipe.synthesise(pipe.prepare(text, prompt), seed=i))


def measure_clean_scores(clean: Iterable[Clean]) -> dict[str, list[float]]:
    """Return by kind the highest score of every utterance, sorted.

    `clean_scores.json` holds them; `Finding.percentile` is the share that a finding's score exceeds.
    """
    found: dict[str, list[float]] = {kind: [] for kind in DETECTORS}
    for _, trace in clean:
        sound = as_sound(trace)
        for kind, detector in DETECTORS.items():
            scores = [spot.score for spot in detector.find(sound)]
            if scores:
                found[kind].append(round(max(scores), 6))
    return {kind: sorted(scores) for kind, scores in found.items()}


def false_alarms(clean: Iterable[Clean]) -> pd.DataFrame:
    """Return every finding in clean speech.

    Returns
    -------
    DataFrame
        `utterance`, `kind`, `start` (seconds), `score`. `attrs["minutes"]` is the length of the speech.
    """
    rows = []
    seconds = 0.0
    for name, trace in clean:
        seconds += trace.seconds
        sound = as_sound(trace)
        for kind in DETECTORS:
            for spot in detect(kind, sound):
                rows.append((name, kind, spot.start, spot.score))
    table = pd.DataFrame(rows, columns=["utterance", "kind", "start", "score"])
    table.attrs["minutes"] = seconds / 60
    return table


def detection(clean: Iterable[Clean]) -> pd.DataFrame:
    """Make every defect of every severity in every utterance; return which share is found.

    Returns
    -------
    DataFrame
        `kind`, `severity` (1..4), `magnitude`, `unit`, `found` (share, 0..1), `n` (utterances).
    """
    rows = []
    long = [trace for _, trace in clean if trace.seconds >= MIN_SECONDS]
    for kind, defect in tqdm(DEFECTS.items(), "defects", unit=" kind", leave=False):
        for severity, magnitude in enumerate(defect.magnitudes, 1):
            hits = [_is_found(trace, kind, defect, severity, seed) for seed, trace in enumerate(long)]
            rows.append((kind, severity, magnitude, defect.unit, sum(hits) / max(len(hits), 1), len(hits)))
    return pd.DataFrame(rows, columns=["kind", "severity", "magnitude", "unit", "found", "n"])


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
    for _, trace in clean:
        if "lm/speech_token" in trace:
            sound = as_sound(pipe.replay(trace, "flow", options))
            rows.append([any(detect(kind, sound) for kind in kinds) for kinds in ONE_STEP_KINDS.values()])
    return pd.DataFrame(rows, columns=list(ONE_STEP_KINDS))


def summary(found: pd.DataFrame, alarms: pd.DataFrame, renders: pd.DataFrame) -> pd.DataFrame:
    """Gather the results of `detection`, `false_alarms` and `one_step` in one table.

    Returns
    -------
    DataFrame
        One row per kind of defect: `kind`, `severities` (their magnitudes), the percentage found at each
        severity, `1` to `4`, and `false alarms/min`. One step of the ODE has a single percentage. The last
        row has the false alarms of all detectors.
    """
    minutes = alarms.attrs["minutes"]
    rows = []
    for kind, part in found.groupby("kind", sort=False):
        magnitudes = " / ".join(f"{magnitude:g}" for magnitude in part["magnitude"])
        count = int(alarms["kind"].isin(DEFECTS[kind].finders).sum())
        shares = 100 * part["found"]
        rows.append((kind, f"{magnitudes} {part['unit'].iloc[0]}", *shares, count / minutes))
    nan = float("nan")
    for name, percent in (100 * renders.mean()).items():
        rows.append(("one step", f"of the ODE, {name}", nan, nan, nan, percent, nan))
    rows.append(("all detectors", f"{minutes:.1f} min clean", nan, nan, nan, nan, len(alarms) / minutes))
    return pd.DataFrame(rows, columns=["kind", "severities", *SEVERITIES, "false alarms/min"])


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
