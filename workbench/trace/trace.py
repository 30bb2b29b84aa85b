"""What a run leaves behind: fields by name, and what they came from."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


class Trace(Mapping[str, Tensor]):
    """Fields of one run by name, on the CPU, in causal order.

    Parameters
    ----------
    data : mapping of str to Tensor
        Fields such as `lm/speech_token` (token), `flow/mel` (mel, frame), `hift/f0` (frame),
        `hift/source` (sample) and `hift/wav` (sample). A waveform holds the target alone.
    attrs : mapping of str to Any
        Options, seed, text, sample rate, seconds spent in each stage and the like.
    """

    def __init__(self, data: Mapping[str, Tensor], attrs: Mapping[str, Any]) -> None:
        self.data = {name: value.detach().cpu() for name, value in data.items()}
        self.attrs = dict(attrs)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.data:
            raise KeyError(f"{name!r} was not recorded; this trace has {', '.join(self.data)}")
        return self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def wav(self) -> Tensor:
        """Waveform (N,)."""
        return self["hift/wav"]

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.attrs["sample_rate"]

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        return len(self.wav) / self.sample_rate

    @property
    def rtf(self) -> float:
        """Compute seconds per second of sound; lower is faster."""
        return sum(self.attrs["timings"].values()) / max(self.seconds, 1e-9)

    def __repr__(self) -> str:
        return f"Trace({self.attrs.get('text', '')!r:.60}, {self.seconds:.2f} s, {len(self)} fields)"
