"""What quantised weights change: `References` are the runs without them, `References.change` measures."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workbench.diagnose.compare.distance import measure
from workbench.diagnose.compare.transitions import transitions
from workbench.diagnose.experiments.metrics import f0_change, mel_l1, sound_db
from workbench.errors import WorkbenchError
from workbench.speech.config import FLOW, HIFT, LM, STAGES, Options
from workbench.speech.config.formats import check_globs, format_of, rules_of, rules_of_stage, rules_text
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.models.quantise.modules import layers_of, quantise_layers
from workbench.speech.models.sampling import nucleus
from workbench.speech.pipeline import Pipeline
from workbench.trace.trace import Trace

MAX_SOUND_CHANGE = 1.0  # dB, rms over the sound's log-mel: about the smallest change of level that is heard
MAX_LM_CHANGE = 0.01  # nat, mean divergence of the next token's distribution: drawn tokens hardly change
MAX_F0_CHANGE = 1.0  # Hz, median over voiced frames: about the smallest change of pitch that is heard
KEPT = ("lm/logp", "lm/drawn_token", "flow/mel", "hift/f0", "hift/source")


class Change(NamedTuple):
    """What quantised weights change; the mean over the runs, and of sound and pitch the worst run.

    Attributes
    ----------
    kl : float
        Mean Kullback-Leibler divergence of the next token's distribution [nat], along the reference's tokens.
    redrawn : float
        Share of draws that would take another token, at least: half the distance between the distributions
        that tokens are drawn from.
    mel_l1 : float
        Mean absolute difference of the flow's mels [ln], from the same tokens.
    sound_db : float
        RMS difference of the sounds' log-mels [dB], from the same tokens and with the reference's excitation.
    f0_hz : float
        Median absolute difference of f0 over voiced frames [Hz].
    own_db : float
        As `sound_db`, each with its own excitation. A change of f0 by a tenth of a hertz shifts the harmonics
        against the noise, and that alone makes near 2 dB which are hardly heard: the number says little.
    snr_db : float
        Level of the reference's sound over that of the difference [dB], each with its own excitation.
    """

    kl: float = 0.0
    redrawn: float = 0.0
    mel_l1: float = 0.0
    sound_db: float = 0.0
    f0_hz: float = 0.0
    own_db: float = 0.0
    snr_db: float = float("inf")

    def within(self, max_db: float, max_kl: float, max_f0: float = MAX_F0_CHANGE) -> bool:
        """Whether sound, tokens and pitch change by no more than this; NaN is no."""
        return self.sound_db <= max_db and self.kl <= max_kl and self.f0_hz <= max_f0


WORST = ("sound_db", "f0_hz", "own_db")  # of which the worst run counts
BROKEN = {name: float("inf") for name in ("mel_l1", "sound_db", "f0_hz", "own_db")} | {
    "snr_db": float("-inf")
}


class References:
    """Runs of several utterances and seeds with the weights as they are.

    Parameters
    ----------
    pipe : Pipeline
        Its eager models are used; each is put back after a measurement.
    utts : Utterance or sequence of Utterance
    options : Options
        Run with `compute="eager"` and without `weights`.
    seeds : sequence of int

    Raises
    ------
    WorkbenchError
        When there is no utterance or no seed.
    """

    def __init__(
        self, pipe: Pipeline, utts: Utterance | Sequence[Utterance], options: Options, seeds: Sequence[int]
    ) -> None:
        if not seeds:
            raise WorkbenchError("expected one or more seeds")
        self.pipe = pipe
        self.options = options.but(compute="eager", weights=None)
        self.inputs = [(utt, seed) for utt in as_utterances(utts) for seed in seeds]
        self.runs = [
            pipe.synthesise(utt, seed=seed, options=self.options, save=KEPT) for utt, seed in self.inputs
        ]

    def change(self, weights: str) -> Change:
        """Measure what formats change.

        Parameters
        ----------
        weights : str
            As `Options.weights`.
        """
        weights = rules_text(weights)
        concerned = {stage for stage in STAGES if rules_of_stage(weights, stage)}
        with self.quantised(weights):
            changes = [self._change_of(run, concerned) for run in self.runs]
        means = Change(*(sum(values) / len(values) for values in zip(*changes, strict=True)))
        worst = {name: largest(getattr(each, name) for each in changes) for name in WORST}
        return means._replace(**worst)

    def layers(self, stage: str) -> dict[str, nn.Module]:
        """Return the layers of a stage's eager model that can be quantised, by name."""
        return layers_of(eager_model(self.pipe, stage, self.options), stage)

    @contextmanager
    def quantised(self, weights: str) -> Iterator[None]:
        """Quantise layers of the pipeline's own models until the block ends."""
        rules = rules_of(weights)
        check_globs(rules, [name for stage in STAGES for name in self.layers(stage)])
        changed: list[tuple[nn.Module, dict[str, Tensor]]] = []
        try:
            for stage in STAGES:
                for name, layer in self.layers(stage).items():
                    if format_of(rules, name) is not None:
                        state = {key: value.clone() for key, value in layer.state_dict().items()}
                        changed.append((layer, state))
                quantise_layers(eager_model(self.pipe, stage, self.options), stage, rules)
            yield
        finally:
            for layer, state in changed:
                layer.load_state_dict(state)

    def _change_of(self, run: Trace, concerned: set[str]) -> Change:
        found = Change()
        if LM in concerned:
            found = found._replace(**self._lm_change(run))
        if FLOW in concerned or HIFT in concerned:
            start = FLOW if FLOW in concerned else HIFT
            try:
                other = self.pipe.replay(run, start, self.options, KEPT)  # draws nothing, so it needs no seed
            except WorkbenchError:  # the flow made a mel of NaN
                return found._replace(**BROKEN)
            f0_hz = f0_change(other, run)
            found = found._replace(
                mel_l1=mel_l1(other, run),
                sound_db=sound_db(self._with_excitation_of(run, other), run),
                f0_hz=0.0 if f0_hz != f0_hz else f0_hz,  # nothing voiced
                own_db=sound_db(other, run),
                snr_db=measure(run.wav, other.wav)["snr_db"],
            )
        return found

    def _with_excitation_of(self, run: Trace, other: Trace) -> Trace:
        """Return the other run's sound as its vocoder makes it with the excitation of the reference."""
        inputs = Trace({"flow/mel": other["flow/mel"], "hift/source": run["hift/source"]}, other.attrs)
        step = next(step for step in transitions(inputs) if "hift/wav" in step.outputs)
        wav = step.recompute(self.pipe, inputs, self.options)[step.outputs.index("hift/wav")]
        return Trace({"hift/wav": wav.cpu().float()}, other.attrs)

    def _lm_change(self, run: Trace) -> dict[str, float]:
        right, found = run["lm/logp"].double(), lm_logp(self.pipe, run, self.options)
        distances = []
        for x, y in zip(right, found, strict=True):
            distances.append(_distance(x, y, self.options.top_p, self.options.top_k))
        is_finite = not bool(found.isnan().any())
        infinite = float("inf")
        return {
            "kl": max(mean_kl(right, found), 0.0) if is_finite else infinite,
            "redrawn": sum(distances) / len(distances) if is_finite else 1.0,
        }


def as_utterances(utts: Utterance | Sequence[Utterance]) -> list[Utterance]:
    """Return one or several utterances as a list; raise a WorkbenchError for anything else."""
    found = [utts] if isinstance(utts, Utterance) else list(utts) if isinstance(utts, Sequence) else []
    if not found or not all(isinstance(utt, Utterance) for utt in found):
        raise WorkbenchError(
            f"utts is a {type(utts).__name__}; expected one or more utterances of pipe.prepare"
        )
    return found


def largest(values: Iterable[float]) -> float:
    """Return the largest value; NaN is larger than all."""
    return max(values, key=lambda x: (x != x, x))


def eager_model(pipe: Pipeline, stage: str, options: Options) -> nn.Module:
    """Return the model of a stage that eager runs with these options use."""
    parts = (options.f0_dtype, options.source_dtype) if stage == HIFT else ()
    return pipe.stage(stage, getattr(options, f"{stage}_dtype"), *parts, weights=options.weights)


def lm_logp(pipe: Pipeline, run: Trace, options: Options) -> Tensor:
    """Return the log-probabilities (draw, vocab) of the LM along a run's tokens, float64."""
    step = next(step for step in transitions(run) if step.outputs == ("lm/logp",))
    (logp,) = step.recompute(pipe, run, options)
    return logp.cpu().double()


def mean_kl(right: Tensor, found: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of log-probabilities (draw, vocab) from the right ones."""
    return float((right.exp() * (right - found)).sum(-1).mean())


def _distance(x: Tensor, y: Tensor, top_p: float, top_k: int) -> float:
    """Return the total variation distance of the nuclei of two distributions (vocab,)."""
    shares = []
    for logp in (x, y):
        ids, probs = nucleus(logp.nan_to_num(-1e9).float(), top_p, top_k)
        share = torch.zeros_like(x)
        share[ids] = (probs / probs.sum()).double()
        shares.append(share)
    return float((shares[0] - shares[1]).abs().sum() / 2)
