"""The tab that runs again with other options, and opens the voice for that."""

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets

from workbench.errors import WorkbenchError
from workbench.files import data_path
from workbench.show.dashboard.tabs import Chosen, Tab
from workbench.show.widgets.background import Bar
from workbench.show.widgets.controls import LABEL_STYLE, WIDE, dropdown, int_slider, text_field
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.config import DTYPES, FLOW, HIFT, LM, MAX_TIMESTEPS, SOLVERS, STAGES, Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import utterance_of
from workbench.trace.record import EVERYTHING
from workbench.trace.schema import FLOW_INPUTS
from workbench.trace.trace import Trace

PROMPT = "prompts/kumo_0.flac"  # of the bundled data, where neither the run nor the form has one
TEXT = "Eight months to Mars."  # where no run has a text
STAGE_WORDS = {LM: "LM", FLOW: "flow", HIFT: "vocoder"}
Made = tuple[str, Trace, list[str]]  # a run: its name, its trace, and what to know of it
PRECISIONS = ("hift_dtype", "f0_dtype", "source_dtype", "head_dtype")


class RunForm(Tab):
    """Runs again with other options: the chosen run from its recorded inputs, or another text.

    The result becomes the dashboard's run, and the one before it the reference.

    Parameters
    ----------
    on_run : callable
        Gets the name and the trace of a run that was made.
    on_voice : callable
        Gets the pipeline of a voice that was opened.
    """

    title = "run again"
    CANCELLED = "cancelled"

    def __init__(self, on_run: Callable[[str, Trace], None], on_voice: Callable[[Pipeline], None]) -> None:
        self._on_run = on_run
        self._on_voice = on_voice
        self._number = 0  # of runs that were made here
        self._preset: dict[str, Any] = {}  # what the form was filled with
        self.form = {
            "text": ipywidgets.Textarea(description="text", style=LABEL_STYLE, layout=WIDE),
            "prompt": text_field("prompt", "recording to clone; empty: that of the run, or a bundled one"),
            "seed": ipywidgets.IntText(0, description="seed", style=LABEL_STYLE),
            "n_timesteps": int_slider("n_timesteps", 10, 1, MAX_TIMESTEPS),
            "cfg_rate": ipywidgets.FloatText(0.0, description="cfg_rate", style=LABEL_STYLE, step=0.05),
            "temperature": ipywidgets.FloatText(1.0, description="temperature", style=LABEL_STYLE, step=0.05),
            "solver": dropdown("solver", SOLVERS, SOLVERS[0]),
            **{name: dropdown(name, DTYPES, "float32") for name in PRECISIONS},
        }
        self.voice = text_field("voice", "folder of a checkpoint; empty: the bundled voice")
        self.go = ipywidgets.Button(description="run", button_style="primary")
        self.go.on_click(lambda _: self.restart(0.0))
        super().__init__(self.form | {"voice": self.voice})
        head = self.children[0]
        head.children = [*head.children, self.go]

    def missing(self) -> str:
        return ""

    def choose(self, chosen: Chosen) -> None:
        super().choose(chosen)
        has_voice = chosen.pipe is not None
        for control in self.form.values():
            control.layout.display = "" if has_voice else "none"
        self.voice.layout.display = "none" if has_voice else ""
        self.go.description = "run" if has_voice else "open the voice"
        if has_voice:
            self._fill(chosen)
        self.show(self._introduction(chosen))

    def activate(self) -> None:
        """Wait for the button."""

    def answer(self, chosen: Chosen, values: dict[str, Any], bar: Bar) -> Pipeline | Made:
        """Open the voice where there is none; else run, and return name, trace and what to know of it."""
        if chosen.pipe is None:
            folder = values["voice"].strip()
            return Pipeline(Checkpoint.load(folder or None), progress=False)
        changed = {name: value for name, value in values.items() if value != self._preset.get(name, value)}
        options = _options_of(chosen).but(
            **{name: value for name, value in changed.items() if name not in ("text", "prompt")}
        )
        runner = chosen.pipe.watched(bar)
        stage = _first_stage(chosen)
        if stage and not {"text", "prompt"} & set(changed):
            trace = runner.replay(chosen.run.trace, stage, options, EVERYTHING)
            notes = [f"{chosen.run.name} again, from its recorded inputs of the {STAGE_WORDS[stage]} on."]
            if stage != LM and "seed" in changed:
                notes.append("The seed changes nothing: the run does not hold the inputs of the LM.")
        else:
            utts, notes = _prepare(chosen, values["text"], values["prompt"].strip())
            if len(utts) > 1:
                raise WorkbenchError(f"the text has {len(utts)} segments; expected one: shorten it")
            notes += utts[0].warnings
            trace = runner.synthesise(utts[0], options=options, save=EVERYTHING)
        return self._name(changed), trace, [*notes, *_other_voice(chosen)]

    def draw(self, result: Pipeline | Made) -> None:
        if isinstance(result, Pipeline):
            self._on_voice(result)
            return
        name, trace, notes = result
        before = self.chosen.run
        self._number += 1
        self._on_run(name, trace)
        if before is not None:
            notes = [*notes, f"{before.name} is now its reference."]
        self.has_answer = True
        self.show(f"{name} is now the run: the tabs show it.", *notes)

    def _on_change(self, _: Any) -> None:
        """Wait for the button."""

    def _put_back(self) -> None:
        """Keep what was typed."""

    def _name(self, changed: Mapping[str, Any]) -> str:
        words = [f"{name}={value}" for name, value in changed.items() if name not in ("text", "prompt")]
        words += [f"other {name}" for name in ("text", "prompt") if name in changed]
        return f"run {self._number + 1}" + (f": {', '.join(words)}" if words else "")

    def _fill(self, chosen: Chosen) -> None:
        """Put the text and the options of the run into the form."""
        options = _options_of(chosen)
        attrs = {} if chosen.run is None else chosen.run.trace.attrs
        self._preset = {"text": str(attrs.get("typed") or attrs.get("text") or TEXT), "prompt": ""}
        self._preset |= {name: getattr(options, name) for name in self.form if name not in self._preset}
        for name, value in self._preset.items():
            self.form[name].value = value

    def _introduction(self, chosen: Chosen) -> str:
        """Say what the button will do."""
        if chosen.pipe is None:
            return "Open the voice that ran, to run again with other options and to look for suspects."
        voice = f"Voice: {chosen.pipe.checkpoint.name}. "
        stage = _first_stage(chosen)
        if stage is None:
            return voice + "The button speaks the text; nothing that is open can be run again."
        return voice + (
            f"The button runs {chosen.run.name} again from its recorded inputs of the {STAGE_WORDS[stage]} "
            "on; with another text or prompt it speaks anew."
        )


def _options_of(chosen: Chosen) -> Options:
    """Return the options of the run, or of the voice where the run states none that fit."""
    own = chosen.pipe.checkpoint.options
    stated = {} if chosen.run is None else chosen.run.trace.attrs.get("options", {})
    try:
        return own.but(**stated)
    except (WorkbenchError, TypeError):  # TypeError: options of another version
        return own


def _first_stage(chosen: Chosen) -> str | None:
    """Return the first stage whose inputs the run holds; None where it cannot be run again."""
    if chosen.run is None:
        return None
    needed = {LM: (*STAGES[LM].inputs, *FLOW_INPUTS), FLOW: STAGES[FLOW].inputs, HIFT: STAGES[HIFT].inputs}
    for stage, fields in needed.items():
        if all(name in chosen.run.trace for name in fields):
            return stage
    return None


def _prepare(chosen: Chosen, text: str, path: str) -> tuple[list[Utterance], list[str]]:
    """Return the utterances of a text in the form's prompt, or else the run's, or else a bundled one."""
    if path:
        prompt, notes = chosen.pipe.prompt(path), [f"Spoken anew in the voice of {path}."]
    elif chosen.run is not None and _first_stage(chosen) == LM:
        prompt = utterance_of(chosen.run.trace).prompt
        notes = [f"Spoken anew in the voice of {chosen.run.name}."]
    else:
        prompt, notes = chosen.pipe.prompt(data_path(PROMPT)), [f"Spoken anew in the voice of {PROMPT}."]
    mode = "zero-shot" if prompt.text else "cross-lingual"
    if not prompt.text:
        notes.append("The prompt has no transcript, so its voice alone is taken (cross-lingual).")
    return chosen.pipe.prepare_all(text, prompt, mode), notes


def _other_voice(chosen: Chosen) -> list[str]:
    """Say where another checkpoint made the run before, or nobody knows which."""
    if chosen.run is None:
        return []
    made_by = chosen.run.trace.attrs.get("checkpoint", {}).get("content_hash")
    if made_by == chosen.pipe.checkpoint.content_hash:
        return []
    what = "Another checkpoint made" if made_by else "It is not known which checkpoint made"
    return [f"{what} {chosen.run.name}: what differs from it may come from the voice, not from the options."]
