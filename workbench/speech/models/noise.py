"""The random tensors that upstream draws while it builds the models, and never saves.

Upstream seeds torch with 0 in the constructor of the flow's decoder. All draws from there on decide the
noise, also those of initial weights, which a checkpoint overwrites later. `Noise` repeats the draws, in
upstream's order, on a generator of its own; torch's global generator is not used. Facts: upstream
`cosyvoice/flow/flow_matching.py`, `cosyvoice/hifigan/generator.py` and the key order llm, flow, hift of
`cosyvoice3.yaml`.
"""

from collections.abc import Mapping
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.config import Config

KEPT_SAMPLES = 1_440_000  # of the excitation, once drawn: a minute, 52 MB
KEYS = ("ode", "initial_phase", "excitation")


class Noise:
    """The noise of one configuration: from upstream's seed, or from a checkpoint's own file.

    Parameters
    ----------
    config : Config
        Its sizes decide the values: other widths draw more or fewer numbers before.
    stored : mapping of str to Tensor, optional
        `ode` (1, M, frames), `initial_phase` (1, harmonics + 1) and `excitation`
        (1, samples, harmonics + 1), float32, of a checkpoint that has its own.

    Raises
    ------
    WorkbenchError
        When a stored tensor is missing or has another shape or type.
    """

    def __init__(self, config: Config, stored: Mapping[str, Tensor] | None = None) -> None:
        self.config = config
        self._drawn: tuple[Tensor, Tensor] | None = (
            None  # excitation so far, and the generator's state after it
        )
        self.stored = None if stored is None else {key: stored[key] for key in KEYS if key in stored}
        for key in () if stored is None else KEYS:
            _check(key, stored.get(key), config)

    def __repr__(self) -> str:
        origin = "upstream's seed 0" if self.stored is None else "a file"
        return f"Noise({self.config.flow.noise_frames} frames, from {origin})"

    @property
    def n_sines(self) -> int:
        """The number of sines of the excitation: fundamental and harmonics."""
        return self.config.hift.nb_harmonics + 1

    def ode(self) -> Tensor:
        """Return the noise that the flow starts from, N(0, 1), as (1, M, noise_frames).

        The first frames belong to the prompt.
        """
        if self.stored is not None:
            return self.stored["ode"].clone()
        return _ode(self.config, torch.Generator().manual_seed(0))

    def initial_phase(self) -> Tensor:
        """Return the phase (1, harmonics + 1) in turns. It never reaches the waveform: see `Source`."""
        return (self._chain[0] if self.stored is None else self.stored["initial_phase"]).clone()

    def excitation(self, n_samples: int) -> Tensor:
        """Return the vocoder's noise, uniform in [0, 1), as (1, n_samples, harmonics + 1).

        Raises
        ------
        WorkbenchError
            Beyond upstream's 300 s, or beyond a stored tensor that differs from upstream's noise, since it
            cannot be continued.
        """
        if self.stored is None:
            return self._draw(n_samples)
        kept = self.stored["excitation"]
        if n_samples <= kept.shape[1]:
            return kept[:, :n_samples].clone()
        longer = self._draw(n_samples)
        if not torch.equal(longer[:, : kept.shape[1]], kept):
            raise WorkbenchError(
                f"the checkpoint's noise file holds {kept.shape[1]} samples and {n_samples} are needed; "
                "it is not upstream's noise, so it cannot be continued. Save it longer or delete the file"
            )
        return longer

    def _draw(self, n_samples: int) -> Tensor:
        max_samples = self.config.hift.noise_samples
        if not 0 <= n_samples <= max_samples:
            raise WorkbenchError(
                f"{n_samples} samples of excitation noise asked for; this configuration has {max_samples} "
                f"({max_samples / self.config.hift.sampling_rate:.0f} s). Split the text"
            )
        # Drawn in order, so shorter noise is the beginning of longer noise, and what was drawn is kept. Two
        # threads may draw the same: each stores noise and state together.
        drawn, state = self._drawn or (torch.empty(1, 0, self.n_sines), self._chain[1])
        missing = n_samples - drawn.shape[1]
        if missing > 0:
            generator = torch.Generator().set_state(state)
            more = torch.rand(1, missing, self.n_sines, generator=generator)
            drawn = torch.cat((drawn, more), dim=1)
            if n_samples <= KEPT_SAMPLES:
                self._drawn = drawn, generator.get_state()
        return drawn[:, :n_samples].clone()

    @cached_property
    def _chain(self) -> tuple[Tensor, Tensor]:
        """Initial phase, and the state of the generator before it draws the excitation."""
        generator = torch.Generator().manual_seed(0)
        flow, hift = self.config.flow, self.config.hift
        _ode(self.config, generator)
        torch.empty(flow.vocab_size, flow.output_size).normal_(generator=generator)  # the flow's embedding
        width = hift.f0_cond_channels
        layers = [(flow.output_size, flow.spk_embed_dim), (width, hift.in_channels, 4)]
        layers += [(width, width, 3)] * 4 + [(1, width)]
        for shape in layers:  # weight, then bias; the bounds of a uniform draw change nothing that follows
            torch.empty(shape).uniform_(generator=generator)
            torch.empty(shape[0]).uniform_(generator=generator)
        phase = torch.rand(1, self.n_sines, generator=generator)
        phase[:, 0] = 0
        return phase, generator.get_state()


def _ode(config: Config, generator: torch.Generator) -> Tensor:
    return torch.randn(1, config.flow.output_size, config.flow.noise_frames, generator=generator)


def _check(key: str, found: Tensor | None, config: Config) -> None:
    sines = config.hift.nb_harmonics + 1
    expected = {
        "ode": (1, config.flow.output_size, config.flow.noise_frames),
        "initial_phase": (1, sines),
        "excitation": (1, -1 if found is None or found.ndim != 3 else found.shape[1], sines),
    }[key]
    if found is None or tuple(found.shape) != expected or found.dtype != torch.float32:
        got = "nothing" if found is None else f"{tuple(found.shape)} {found.dtype}"
        raise WorkbenchError(
            f"noise file: {key} is {got}; expected {expected} torch.float32. Delete it to regenerate"
        )


@lru_cache(maxsize=4)
def _noise(config: Config) -> Noise:
    return Noise(config)


def ode_noise(config: Config) -> Tensor:
    """Upstream's fixed start of the flow, N(0, 1): Tensor (1, M, noise_frames)."""
    return _noise(config).ode()


def excitation_noise(config: Config, n_samples: int) -> Tensor:
    """Leading samples of upstream's vocoder noise, uniform: Tensor (1, n_samples, harmonics + 1)."""
    return _noise(config).excitation(n_samples)


def initial_phase(config: Config) -> Tensor:
    """Upstream's initial phases in turns, the fundamental's 0: Tensor (1, harmonics + 1)."""
    return _noise(config).initial_phase()
