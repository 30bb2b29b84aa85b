"""Whether the fields of a trace can be of one run: lengths that cannot go together, before any number."""

from collections.abc import Iterator, Mapping

from workbench.speech.config import FlowConfig, HiFTConfig
from workbench.trace.schema import SUFFIX, dims_of
from workbench.trace.trace import Trace

PER_TOKEN = FlowConfig().token_mel_ratio  # frames
PER_FRAME = HiFTConfig().hop_length  # samples
PER_COLUMN = HiFTConfig().istft_hop_len  # samples


def misfits(trace: Trace) -> list[str]:
    """Return a sentence for every two fields whose lengths cannot be of one run; none if all fit.

    Steps that were dumped from one utterance and a waveform of the next look well alone and never together.
    """
    lengths: dict[str, dict[int, list[str]]] = {}
    for name in (n for n in trace if not n.endswith(SUFFIX)):
        for dim, length in zip(dims_of(name), trace[name].shape, strict=True):
            lengths.setdefault(dim, {}).setdefault(length, []).append(name)
    found = [_disagreement(dim, fields) for dim, fields in lengths.items() if len(fields) > 1]
    known = {dim: next(iter(fields)) for dim, fields in lengths.items() if len(fields) == 1}
    if "prompt_frames" in trace.attrs:
        known["prompt_frames"] = trace.prompt_frames
    whose = {dim: ", ".join(names) for dim, fields in lengths.items() for names in fields.values()}
    whose["prompt_frames"] = "the attribute prompt_frames"
    for dim, others, expected, rule in _rules(known, trace.attrs.get("options", {}).get("speed", 1.0)):
        if known[dim] != expected:
            found.append(
                f"{whose[dim]} has {known[dim]} along {dim}, and {' and '.join(whose[o] for o in others)} "
                f"{'makes' if len(others) == 1 else 'make'} {expected} ({rule})"
            )
    return [f"fields are not of one run: {text}" for text in found]


def _disagreement(dim: str, fields: Mapping[int, list[str]]) -> str:
    return f"{dim} is " + ", but ".join(f"{length} in {', '.join(names)}" for length, names in fields.items())


def _rules(known: Mapping[str, int], speed: float) -> Iterator[tuple[str, tuple[str, ...], int, str]]:
    """Dimension, those it follows from, what it should be and why; where all of them are known."""
    n = known.get

    def all_known(*dims: str) -> bool:
        return all(dim in known for dim in dims)

    if all_known("knot", "step"):
        yield "knot", ("step",), n("step") + 1, "one knot more than steps; knot 0 is the noise"
    if all_known("prompt_frame", "prompt_frames"):
        yield "prompt_frame", ("prompt_frames",), n("prompt_frames"), "the prompt's mel"
    if all_known("frame", "flow_prompt", "token"):
        frames = PER_TOKEN * (n("flow_prompt") + n("token"))
        yield "frame", ("flow_prompt", "token"), frames, f"{PER_TOKEN} frames a token"
    if all_known("target_frame", "token") and speed == 1.0:
        yield "target_frame", ("token",), PER_TOKEN * n("token"), f"{PER_TOKEN} frames a token"
    if all_known("frame", "prompt_frames", "target_frame") and speed == 1.0:
        frames = n("frame") - n("prompt_frames")
        yield "target_frame", ("frame", "prompt_frames"), frames, "the frames behind the prompt"
    if all_known("sample", "target_frame"):
        yield "sample", ("target_frame",), PER_FRAME * n("target_frame"), f"{PER_FRAME} samples a frame"
    if all_known("stft_frame", "target_frame"):
        columns = PER_FRAME // PER_COLUMN * n("target_frame") + 1
        yield "stft_frame", ("target_frame",), columns, f"a column every {PER_COLUMN} samples, and one more"
