"""How well the glitch detectors do: defects found, false alarms on clean speech. `workbench bench glitches`.

Clean speech is the recordings of data/prompts and what the bundled voice says. Thresholds were set while
looking at the recordings and at the sentences of `TUNED_ON`; the table is of `REPORTED_ON`, which were not
looked at before.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from tqdm import tqdm

from workbench.diagnose.glitches.analysis import as_sound
from workbench.diagnose.glitches.defects import DEFECTS, Defect, inject
from workbench.diagnose.glitches.detectors import DETECTORS
from workbench.diagnose.glitches.glitches import found_by
from workbench.errors import WorkbenchError
from workbench.speech.frontend.audio import read_wav
from workbench.speech.pipeline import Pipeline
from workbench.trace.trace import Trace

PROMPTS = "data/prompts"
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
NEAR_S = 0.05  # a finding this near to the defect is of it
LEAST_S = 1.2  # shorter utterances are not spoiled


class Clean(NamedTuple):
    """One utterance that is meant to be right."""

    name: str
    trace: Trace


def recordings(paths: Iterable[str | os.PathLike]) -> Iterator[Clean]:
    """Sound files, and those in folders, as traces of a waveform alone."""
    for path in map(Path, paths):
        inside = sorted(p for p in path.iterdir() if p.suffix in (".flac", ".wav", ".ogg", ".opus"))
        for file in inside if path.is_dir() else [path]:
            wav, rate = read_wav(file)
            yield Clean(file.name, Trace({"hift/wav": wav}, {"sample_rate": rate}))


def spoken(pipe: Pipeline, sentences: Iterable[str], prompts: str | os.PathLike = PROMPTS) -> Iterator[Clean]:
    """Let the bundled voice say sentences, its prompts in turn."""
    for i, text in enumerate(sentences):
        prompt = f"{VOICES[i % len(VOICES)]}_{i // len(VOICES) % 2}.flac"
        yield Clean(text, pipe.synthesise(pipe.prepare(text, Path(prompts) / prompt), seed=i))


def clean_scores(clean: Iterable[Clean]) -> dict[str, list[float]]:
    """Return the highest score of every utterance by kind, sorted; what `Finding.percentile` is of."""
    found: dict[str, list[float]] = {kind: [] for kind in DETECTORS}
    for _, trace in clean:
        sound = as_sound(trace)
        for kind, detector in DETECTORS.items():
            scores = [spot.score for spot in detector.find(sound)]
            found[kind] += [round(max(scores), 6)] if scores else []
    return {kind: sorted(scores) for kind, scores in found.items()}


def false_alarms(clean: Iterable[Clean]) -> pd.DataFrame:
    """Return every finding in clean speech: `utterance`, `kind`, `start`, `score`; `attrs["minutes"]`."""
    rows, seconds = [], 0.0
    for name, trace in clean:
        seconds += trace.seconds
        sound = as_sound(trace)
        for kind in DETECTORS:
            rows += [(name, kind, spot.start, spot.score) for spot in found_by(kind, sound)]
    table = pd.DataFrame(rows, columns=["utterance", "kind", "start", "score"])
    table.attrs["minutes"] = seconds / 60
    return table


def detection(clean: Iterable[Clean]) -> pd.DataFrame:
    """Spoil every utterance in every way; return the share found by kind and severity, 0..1."""
    rows = []
    long = [trace for _, trace in clean if trace.seconds >= LEAST_S]
    for kind, defect in tqdm(DEFECTS.items(), "defects", unit=" kind", leave=False):
        for severity, magnitude in enumerate(defect.magnitudes, 1):
            hits = [_is_found(trace, kind, defect, severity, seed) for seed, trace in enumerate(long)]
            rows.append((kind, severity, magnitude, defect.unit, sum(hits) / max(len(hits), 1), len(hits)))
    return pd.DataFrame(rows, columns=["kind", "severity", "magnitude", "unit", "found", "n"])


def one_step(pipe: Pipeline, clean: Iterable[Clean]) -> pd.DataFrame:
    """Render the same tokens with one step of the ODE; return which are found: `wav` alone, `trace`."""
    options = pipe.checkpoint.options.but(n_timesteps=1)
    renders = [pipe.replay(trace, "flow", options) for _, trace in clean if "lm/speech_token" in trace]
    kinds = {"wav": ("smear", "buzz"), "trace": ("smear", "buzz", "mel", "off mel")}
    rows = [
        [any(found_by(kind, as_sound(trace)) for kind in of) for of in kinds.values()] for trace in renders
    ]
    return pd.DataFrame(rows, columns=list(kinds))


def summary(found: pd.DataFrame, alarms: pd.DataFrame, renders: pd.DataFrame) -> pd.DataFrame:
    """Return one row a kind: what the severities are, % found at each, false alarms a minute."""
    rows = []
    for kind, part in found.groupby("kind", sort=False):
        what = " / ".join(f"{m:g}" for m in part["magnitude"]) + " " + part["unit"].iloc[0]
        finders = DEFECTS[kind].finders
        count = int(alarms["kind"].isin(finders).sum())
        rows.append((kind, what, *(100 * part["found"]), count / alarms.attrs["minutes"]))
    for what, share in (100 * renders.mean()).items():
        rows.append(("one step", f"of the ODE, {what}", *[float("nan")] * 3, share, float("nan")))
    alarm = len(alarms) / alarms.attrs["minutes"]
    rows.append(("all detectors", f"{alarms.attrs['minutes']:.1f} min clean", *[float("nan")] * 4, alarm))
    return pd.DataFrame(rows, columns=["kind", "severities", "1", "2", "3", "4", "false alarms/min"])


def _is_found(trace: Trace, kind: str, defect: Defect, severity: int, seed: int) -> bool:
    try:
        made = inject(trace.wav, trace.sample_rate, kind, severity, seed)
    except WorkbenchError:  # too little speech in it to spoil
        return False
    about = {"sample_rate": trace.sample_rate} | ({"seams": made.seams} if made.seams else {})
    sound = as_sound(Trace({"hift/wav": torch.as_tensor(made.wav)}, about))
    spots = [spot for finder in defect.finders for spot in found_by(finder, sound)]
    return any(s.start <= made.end + NEAR_S and s.end >= made.start - NEAR_S for s in spots)
