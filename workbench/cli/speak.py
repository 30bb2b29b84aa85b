"""`workbench speak`: texts in, sound and traces out."""

import os
import sys
import warnings
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from workbench.cli.common import (
    OPTION_NAMES,
    Device,
    OptionPairs,
    Prompt,
    Voice,
    Weights,
    check_device,
    open_pipe,
    open_prompt,
    run_options,
    table_text,
)
from workbench.errors import WorkbenchError, WorkbenchWarning
from workbench.files import about_address, check_writable

if TYPE_CHECKING:
    from workbench.speech.frontend.utterance import Utterance

app = typer.Typer()
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")  # of what is no folder
SHOWN_TEXT = 48  # characters of a text in the table
SHOWN_CHANGE = 400  # characters of a text that is spoken otherwise than typed
EPILOG = (
    "Options for --option: " + ", ".join(OPTION_NAMES) + ".\n\n"
    'Example: workbench speak "Eight months to Mars." --option n_timesteps=1 --trace everything'
)


@app.command(epilog=EPILOG)
def speak(
    text: Annotated[list[str], typer.Argument(help="Each is one numbered output; long ones are split.")],
    voice: Voice = None,
    prompt: Prompt = None,
    prompt_text: Annotated[
        str | None,
        typer.Option(help="Transcript of the recording.", show_default="the .txt beside the recording"),
    ] = None,
    prompt_rate: Annotated[
        int | None, typer.Option(help="Hz, of a recording that is samples alone (.pcm, .raw, .f32, ...).")
    ] = None,
    mode: Annotated[
        Literal["zero-shot", "cross-lingual", "instruct"],
        typer.Option(
            help="zero-shot continues the recording and needs its transcript; the others take its voice."
        ),
    ] = "zero-shot",
    instruct: Annotated[str | None, typer.Option(help="How to speak, for --mode instruct.")] = None,
    frontend: Annotated[
        Literal["workbench", "upstream", "off"],
        typer.Option(help="Whose rules write the text as it is spoken; off: the text as it is."),
    ] = "workbench",
    language: Annotated[
        str | None,
        typer.Option(help="Code of the texts' language, such as de.", show_default="guessed"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the LM's draws.")] = 0,
    device: Device = "cpu",
    option: OptionPairs = None,
    weights: Weights = None,
    trace: Annotated[
        Literal["summary", "everything"] | None,
        typer.Option(help="Also write a trace beside each sound.", show_default="no trace"),
    ] = None,
    out: Annotated[str, typer.Option("-o", "--out", help="Folder.")] = "output",
    name: Annotated[
        str, typer.Option(help="Files are NAME_text_segment.wav; where they exist, NAME_text_segment_1.wav.")
    ] = "speech",
    force: Annotated[
        bool, typer.Option("--force", "--overwrite", help="Replace files of the same name.")
    ] = False,
) -> int:
    """Say texts in a prompt's voice and write sound files."""
    recording = open_prompt(prompt)
    _check_texts(text, frontend, language)
    _check_inputs(recording, prompt_text, prompt_rate, mode, instruct)
    changes = {"seed": seed} | run_options(option, weights)
    check_device(device)
    if Path(out).suffix.lower() in SOUND_SUFFIXES and not Path(out).is_dir():
        stem = Path(out).stem
        raise WorkbenchError(
            f"--out {out} is the name of a sound; expected a folder: --name {stem} names the files"
        )

    import pandas as pd

    from workbench.diagnose.glitches.wave_stats import wave_stats
    from workbench.speech.frontend.audio import write_wav
    from workbench.trace.record import EVERYTHING, NOTHING, SUMMARY

    pipe = open_pipe(voice, device)
    options = pipe.checkpoint.options.but(**changes)
    save = {None: NOTHING, "summary": SUMMARY, "everything": EVERYTHING}[trace]
    jobs: list[tuple[str, Utterance]] = []
    changes_of_text = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkbenchWarning)  # an utterance holds them; they are printed below
        cloned = pipe.prompt(str(recording), prompt_text, prompt_rate)
        if mode == "zero-shot" and not cloned.text:
            raise WorkbenchError(_no_transcript(recording))
        for i, one in enumerate(text):
            utts = pipe.prepare_all(one, cloned, mode, instruct, frontend, language)
            jobs += [(f"{i}_{j}", utt) for j, utt in enumerate(utts)]
            changes_of_text += [f"text {i}: {said}" for said in _changes(one, utts)]
    for message in dict.fromkeys(message for _, utt in jobs for message in utt.warnings):
        print(f"warning: {message}", file=sys.stderr)
    paths = _free_paths(Path(out), name, [number for number, _ in jobs], force)
    for path in paths:
        check_writable(path.with_suffix(".trace"))  # the longer of the names of sound and trace

    rows = []
    written = []
    for path, (_, utt) in zip(paths, jobs, strict=True):
        run = pipe.synthesise(utt, options=options, save=save)
        write_wav(path, run.wav, run.sample_rate)
        if trace is not None:
            written.append(run.save(path.with_suffix(".trace")))
        stats = wave_stats(run.wav, run.sample_rate, pipe.config.hift.audio_limit)
        rows.append({"file": str(path), **stats, "rtf": run.rtf, "text": utt.text[:SHOWN_TEXT]})
    print(table_text(pd.DataFrame(rows), 4))
    print("peak and rms are of full scale, silence is a share of the time, rtf is compute / audio seconds")
    for said in changes_of_text:
        print(said)
    for path in written:
        print(f"trace: {path}")
    return 0


def _changes(typed: str, utts: "Sequence[Utterance]") -> list[str]:
    """Say where the spoken text differs from the typed one, beside its spaces."""
    given = " ".join(typed.split())
    said = " ".join(" ".join(utt.normalised for utt in utts).split())
    found = []
    if said.replace(" ", "") != given.replace(" ", ""):
        if len(said) > SHOWN_CHANGE:  # from the first change on
            first = next((i for i, (a, b) in enumerate(zip(given, said, strict=False)) if a != b), 0)
            said = f"... {said[first : first + SHOWN_CHANGE]} ..."
        found.append(f"spoken as {said}")
    return found


def _check_texts(texts: list[str], frontend: str, language: str | None) -> None:
    """Check texts before a voice is opened."""
    from workbench.speech.frontend.text import normalise

    if language is not None and frontend != "workbench":
        raise WorkbenchError(f"--language is for --frontend workbench; found --frontend {frontend}")
    for text in texts:
        normalise(text, language)  # raises where there is nothing to say


def _check_inputs(
    recording: Path, prompt_text: str | None, prompt_rate: int | None, mode: str, instruct: str | None
) -> None:
    """Check what can be checked before a voice is opened."""
    from workbench.speech.frontend.audio_files import HEADERLESS

    is_file = os.path.isfile(recording)  # Path.is_file raises an OSError for a name that is too long
    if not is_file and (recording.suffix or len(recording.parts) != 1):  # otherwise it may name a speaker
        raise WorkbenchError(
            f"--prompt {str(recording)!r:.80} is not a file; expected a recording to clone"
            f"{about_address(recording)}"
        )
    if is_file and recording.suffix.lower() in HEADERLESS and prompt_rate is None:
        raise WorkbenchError(f"{recording} has no header that states its rate; give --prompt-rate in Hz")
    if mode == "instruct" and not (instruct or "").strip():
        raise WorkbenchError("--mode instruct needs --instruct, such as --instruct 'Speak slowly.'")
    if instruct and mode != "instruct":
        raise WorkbenchError(f"--instruct is for --mode instruct; found --mode {mode}")
    has_transcript = prompt_text is not None or os.path.isfile(recording.with_suffix(".txt"))
    if mode == "zero-shot" and is_file and not has_transcript:
        raise WorkbenchError(_no_transcript(recording))


def _no_transcript(recording: Path) -> str:
    return (
        f"there is no transcript of {recording}; give --prompt-text, write {recording.stem}.txt beside it, "
        "or "
        "use --mode cross-lingual"
    )


def _free_paths(folder: Path, name: str, numbers: list[str], force: bool) -> list[Path]:
    """Return the sound files to write; where one of them is there, all get the first free number behind."""
    for repeat in count():
        ending = f"_{repeat}" if repeat else ""
        paths = [folder / f"{name}_{number}{ending}.wav" for number in numbers]
        targets = [*paths, *(path.with_suffix(".trace") for path in paths)]
        if force or not any(os.path.exists(target) for target in targets):
            return paths
    raise AssertionError  # unreachable: count does not end
