"""What others hear in a sound: the words that a recogniser misses, and the quality that a model predicts.

Both need libraries that are optional: `pip install 'cosyvoice-workbench[judges]'`. No model is downloaded:
Whisper's weights must lie on the machine already; DNSMOS comes with its library.
"""

import os
import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError, first_line
from workbench.speech.frontend.audio import WHISPER_RATE, resample
from workbench.speech.frontend.audio_input import MAX_PEAK, MIN_PEAK, AudioSource, open_audio
from workbench.speech.frontend.text.language import has_words, language_of_numbers
from workbench.speech.frontend.text.normalise import normalise, token_pattern
from workbench.speech.frontend.text.tokenizer import special_tokens
from workbench.trace.trace import Trace

Judge = Callable[[np.ndarray, int], str]  # samples (N,) in float32 and their rate -> what is heard

WHISPER = "small"  # the model of a judge that is not named
WHISPER_FILES = ("model.bin", "config.json", "tokenizer.json")
MIN_SECONDS = 0.1  # shorter than a syllable
DNSMOS_RATE = 16_000  # Hz
END_OF_PROMPT = "<|endofprompt|>"  # what stands before it is an instruction, which is not spoken
# Scripts that are written without spaces: Thai and Lao, Burmese, Khmer, kana, Chinese characters.
UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)


@dataclass(frozen=True)
class Whisper:
    """A recogniser: Whisper, as faster-whisper runs it, in float32 and without random draws.

    Parameters
    ----------
    model : str or path
        Folder with a model for CTranslate2 (`model.bin`, `config.json`, `tokenizer.json`), or the name of one
        that faster-whisper has downloaded before, such as "small" or "large-v3".
    language : str, optional
        Code of the language that is spoken, such as "en"; Whisper guesses by default.
    device : str
        "cpu" or "cuda".

    Examples
    --------
    >>> wb.metrics.Whisper("whisper-small", language="en")
    Whisper(model='whisper-small', language='en', device='cpu')
    """

    model: str | os.PathLike = WHISPER
    language: str | None = None
    device: str = "cpu"

    def __call__(self, wav: np.ndarray, rate: int) -> str:
        """Return the text that is heard in samples (N,) from -1 to 1.

        Raises
        ------
        WorkbenchError
            When faster-whisper or the model is not on this machine, or the model cannot be read.
        """
        model = _whisper(os.fspath(self.model), self.device)
        wav16 = resample(torch.from_numpy(wav), rate, WHISPER_RATE).numpy()
        # One temperature: where Whisper is unsure it would otherwise draw at random.
        segments, _ = model.transcribe(
            wav16, language=self.language, temperature=0.0, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)


class Heard(NamedTuple):
    """What a recogniser heard, against what was to be said."""

    wrong: int  # words that were replaced, left out or added
    words: int  # to be said
    text: str  # heard


def wer(
    sound: Trace | AudioSource,
    text: str | Trace | None = None,
    *,
    judge: Judge | str | os.PathLike = WHISPER,
    sample_rate: float | None = None,
) -> float:
    """Return the word error rate: words that a recogniser replaces, leaves out or adds, over words to say.

    Case, punctuation and special tokens do not count; numbers are compared as words in English and Chinese.
    In scripts without spaces, such as Chinese, Japanese and Thai, each character counts as a word, so that
    the result is their character error rate. It may exceed 1. It is as good as the recogniser: its mistakes
    with the same words in a good recording are in it.

    Parameters
    ----------
    sound : Trace, path, samples, or (samples, rate)
    text : str or Trace, optional
        What was to be said, or a run that says it, such as the reference of an `Experiment`; by default the
        trace's own text.
    judge : callable, str or path
        Any function of samples (N,) in float32 and their rate [Hz] that returns a text; or a `Whisper` model
        by name or folder.
    sample_rate : float, optional
        Hz, of samples without a rate.

    Returns
    -------
    float

    Raises
    ------
    WorkbenchError
        When the sound is empty, silent, shorter than 0.1 s or not finite, no text is known, a library or a
        model is missing, or the judge fails.

    Examples
    --------
    >>> wb.metrics.wer(trace, judge=lambda wav, rate: "Eight moons to mars")
    0.25
    >>> from functools import partial
    >>> metrics = {"wer": partial(wb.metrics.wer, judge=wb.metrics.Whisper("whisper-small"))}
    >>> experiment = wb.Experiment(pipe, {"mars": utt}, {"own": {}}, metrics=metrics)
    """
    found = hear(sound, text, judge=judge, sample_rate=sample_rate)
    return found.wrong / found.words


def hear(
    sound: Trace | AudioSource,
    text: str | Trace | None = None,
    *,
    judge: Judge | str | os.PathLike = WHISPER,
    sample_rate: float | None = None,
) -> Heard:
    """Return what a recogniser hears, with the count of wrong words; see `wer`."""
    if not isinstance(text, str | Trace | None):
        raise WorkbenchError(f"text is a {type(text).__name__}; expected the words that are to be heard")
    said = text if isinstance(text, str) else _text_of(text) or _text_of(sound)
    right, language = words_to_say(said)
    wav, rate = _sound(sound, sample_rate)
    judge = judge_of(judge)
    jiwer = needed("jiwer", "wer")
    try:
        heard = judge(wav.numpy(), rate)
    except WorkbenchError:
        raise
    except Exception as error:  # whatever somebody's recogniser raises
        raise WorkbenchError(
            f"the judge raised {type(error).__name__}: {first_line(error)}; expected a function of samples "
            "(N,) and their rate that returns a text"
        ) from error
    if not isinstance(heard, str):
        raise WorkbenchError(f"the judge returned a {type(heard).__name__}; expected the text that it hears")
    found = jiwer.process_words(" ".join(right), " ".join(words_of(heard, language)))
    return Heard(found.substitutions + found.deletions + found.insertions, len(right), heard)


def dnsmos(
    sound: Trace | AudioSource, reference: Trace | None = None, *, sample_rate: float | None = None
) -> float:
    """Return the overall quality that DNSMOS P.835 predicts people to vote for, from 1 (bad) to 5.

    The model was trained on noisy speech after noise suppression. It hears noise and distortion, and no
    words: speech played backwards gets nearly the same. The sound is resampled to 16 kHz, so that nothing
    above 8 kHz counts, and clipped at full scale, as a player would.

    Parameters
    ----------
    sound : Trace, path, samples, or (samples, rate)
        Sounds below 9 s are repeated until they are as long; of longer ones, the mean over windows of 9 s.
    reference : Trace, optional
        Not used: metrics of an `Experiment` are given one.
    sample_rate : float, optional
        Hz, of samples without a rate.

    Returns
    -------
    float

    Raises
    ------
    WorkbenchError
        When the sound is empty, silent, shorter than 0.1 s or not finite, or speechmos is not installed.

    Examples
    --------
    >>> 1 <= wb.metrics.dnsmos(trace) <= 5
    True
    """
    wav, rate = _sound(sound, sample_rate)
    library = needed("speechmos.dnsmos", "dnsmos")
    wav16 = resample(wav, rate, DNSMOS_RATE).clamp(-1, 1)
    return float(library.run(wav16.numpy(), sr=DNSMOS_RATE)["ovrl_mos"])


def judge_of(judge: Judge | str | os.PathLike) -> Judge:
    """Return a judge as a function; a name or a folder is one of Whisper, whose model is opened now."""
    if isinstance(judge, str | os.PathLike):
        judge = Whisper(judge)
    if isinstance(judge, Whisper):
        _whisper(os.fspath(judge.model), judge.device)
    if not callable(judge):
        raise WorkbenchError(
            f"judge is a {type(judge).__name__}; expected the name or folder of a Whisper model, or a "
            "function of samples (N,) and their rate that returns a text"
        )
    return judge


def words_of(text: str, language: str | None = None) -> list[str]:
    """Return the words of a text as they are compared; a character of a script without spaces is a word.

    >>> words_of("Well-known: it's 8 p.m. [breath]")
    ['well', 'known', "it's", 'eight', 'pm']
    >>> words_of("我有8个GPU。")
    ['我', '有', '八', '个', 'gpu']
    """
    spoken = re.sub(r"<\|.*?\|>", " ", text.rpartition(END_OF_PROMPT)[2])
    spoken = token_pattern(tuple(special_tokens())).sub(" ", spoken)
    if not has_words(spoken):
        return []
    with suppress(WorkbenchError):  # nothing but signs is left
        spoken = normalise(spoken, language)
    spoken = unicodedata.normalize("NFKC", spoken).casefold().replace("’", "'")
    spoken = re.sub(r"\b((?:\w\.)+)(?=\W|$)", lambda match: match[1].replace(".", ""), spoken)  # p.m.
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LNM" else " " for c in spoken)
    words = (word.strip("'") for word in UNSPACED.sub(r" \1 ", kept).split())
    return [word for word in words if word]


def words_to_say(text: str) -> tuple[list[str], str]:
    """Return the words of a text to say, and the language whose numbers are words in it."""
    # "und" is a language whose digits stay: what is heard is then not taken for English.
    language = language_of_numbers(text) or "und"
    words = words_of(text, language)
    if not words:
        found = f"the text is {text!r:.60}" if text else "no text is known for this sound"
        raise WorkbenchError(f"{found}; pass the words that are to be heard: wer(sound, 'Good morning.')")
    return words, language


def why_not_heard(wav: Tensor, rate: int) -> str:
    """Return why nobody can judge a sound (N,), as a clause; empty if there is something to hear."""
    seconds = len(wav) / rate
    if seconds < MIN_SECONDS:
        return f"lasts {seconds:.3f} s; expected {MIN_SECONDS} s or more"
    if not wav.isfinite().all():
        return "holds NaN or infinite samples; expected numbers from -1 to 1"
    peak = float(wav.abs().max())
    if peak < MIN_PEAK:
        return f"is silent (peak {peak:.1e}); expected speech"
    if peak > MAX_PEAK:
        return f"reaches a level of {peak:.4g}; expected samples from -1 to 1: divide by full scale"
    return ""


def needed(name: str, metric: str) -> ModuleType:
    """Import a library that is optional; raise a WorkbenchError that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise WorkbenchError(
            f"{metric} needs {package}, which cannot be imported ({first_line(error)}); install it with "
            f"`pip install 'cosyvoice-workbench[judges]'`, or with `pip install {package}`"
        ) from None


def _sound(sound: Any, sample_rate: float | None) -> tuple[Tensor, int]:
    """Return samples (N,) in float32 and their rate; raise for what nobody can judge."""
    if isinstance(sound, Trace):
        if "hift/wav" not in sound:
            raise WorkbenchError("the trace has no waveform (hift/wav); expected a run of all stages")
        wav, rate = sound.wav.detach().cpu(), sound.sample_rate
    else:
        found = open_audio(sound, sample_rate, "the sound")
        wav, rate = found.wav, found.rate
    reason = why_not_heard(wav, rate)
    if reason:
        raise WorkbenchError(f"the sound {reason}")
    return wav.float(), rate


def _text_of(source: object) -> str:
    return source.attrs.get("text") or "" if isinstance(source, Trace) else ""


@cache
def _whisper(model: str, device: str) -> Any:
    """Open a model of Whisper that is on this machine."""
    library = needed("faster_whisper", "Whisper")
    folder = Path(model)
    get_it = (
        f"download one once, in Python: faster_whisper.download_model({WHISPER!r}, 'whisper-{WHISPER}'), and "
        "pass that folder; or pass a function of samples and rate as judge"
    )
    missing = [name for name in WHISPER_FILES if not (folder / name).is_file()]
    if folder.is_dir() and missing:  # without its tokenizer, faster-whisper would ask the hub for one
        raise WorkbenchError(f"{model} has no {', '.join(missing)}; expected a Whisper model: {get_it}")
    if not folder.is_dir() and model not in library.available_models():
        names = ", ".join(library.available_models())
        raise WorkbenchError(f"{model} is no folder and no Whisper model ({names}); {get_it}")
    try:
        return library.WhisperModel(model, device=device, compute_type="float32", local_files_only=True)
    except FileNotFoundError:
        raise WorkbenchError(
            f"the Whisper model {model!r} is not on this machine, and nothing is downloaded unasked; {get_it}"
        ) from None
    except Exception as error:  # CTranslate2 raises RuntimeError and ValueError for whatever is wrong
        raise WorkbenchError(
            f"the Whisper model {model} cannot be opened on {device}: {first_line(error)}"
        ) from error
