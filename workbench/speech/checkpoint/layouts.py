"""Find a stage's weights in what trainers, servers and ports save, and say what was changed on the way.

A file may hold a state dict inside other dicts, under a prefix, beside optimiser states or discriminators,
with weight norm multiplied out, or in float64. `find_stage` looks for the one prefix under which all of the
stage's names stand. What lies elsewhere is left out; what lies among the weights and is unknown is refused.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint import weight_names
from workbench.speech.checkpoint.quantised.dequantised import Dequantised
from workbench.speech.checkpoint.quantised.schemes import check_schemes
from workbench.speech.checkpoint.weights import describe, is_dense, narrowest
from workbench.speech.models.dit import RotaryEmbed

MAX_NAMES = 100_000  # in one file, nested dicts included
MAX_DEPTH = 8  # of nested dicts
MAX_PARTS = 12  # of a dotted name; the longest here has 8
MAX_NAME = 300  # characters of a name; the longest here has 70
# Parts of names that wrappers add: DataParallel and DeepSpeed, torch.compile, FSDP, activation checkpointing,
# Lightning. No model here has a part of such a name.
WRAPPERS = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
)
# First parts of names beside the weights, of what is not needed to speak.
OTHER_MODULES = frozenset(
    (
        *("discriminator", "discriminators", "disc", "mpd", "msd", "mrd", "mssd", "criterion", "loss"),
        *("optimizer", "optimizers", "optim", "scheduler", "lr_scheduler", "lr_schedulers"),
        *("scaler", "grad_scaler", "loss_scaler", "amp", "callbacks", "optimizer_states", "optimizer_state"),
    )
)
# Last parts of names: buffers that are computed from the configuration, or drawn from a seed.
BUFFERS = frozenset(
    (
        *("inv_freq", "original_inv_freq", "cos_cached", "sin_cached", "position_ids", "causal_mask"),
        *("rand_noise", "rand_ini", "sine_waves", "uv", "stft_window", "window", "mel_basis", "hann_window"),
    )
)
COUNTERS = frozenset(
    (
        *("epoch", "step", "steps", "global_step", "iteration", "iterations", "iter", "batch_idx", "lr"),
        *("loss", "best_loss", "num_updates", "n_averaged", "num_batches_tracked", "decay", "n_updates"),
    )
)
# What changes the weights themselves. To leave it out would load another model.
ADAPTERS = re.compile(r"(^|[._])(lora|dora|ia3|hada|lokr|loha|oft|boft|vera|adapter|delta)([._]|$)", re.I)
QUANTISED = re.compile(r"(scales?|scale_inv|zero_points?|q?zeros|qweight|g_idx|absmax|quant_\w+|SCB)$", re.I)


WEIGHTS = (Tensor, Dequantised)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class FoundStage(NamedTuple):
    """The weights of a stage under upstream's names, not yet checked, and what was changed to find them."""

    weights: dict[str, Any]
    notes: list[str]
    complete: bool  # whether every name that the stage needs was found


def find_stage(
    stage: str,
    content: Mapping[Any, Any],
    expected: dict[str, tuple],
    file: str,
    of_other_stages: Collection[str] = (),
) -> FoundStage:
    """Find a stage's weights in the content of a file.

    Parameters
    ----------
    stage : {"lm", "flow", "hift"}
    content : dict
        What the file holds; may be nested.
    expected : dict of str to tuple
        Upstream's name and the shape of each weight.
    file : str
        Name of the file, for messages.
    of_other_stages : collection of str
        Names that the weights of other stages may have, where one file holds several stages.

    Returns
    -------
    FoundStage
        Names that are unknown among the weights are in it too, so that the check of names refuses them.

    Raises
    ------
    WorkbenchError
        When two sets of weights fit, two names mean the same weight, or there is an adapter.
    """
    notes: list[str] = []
    names = _without_wrappers(_flatten(content, file), file, notes)
    formats = {name: value.format for name, value in names.items() if isinstance(value, Dequantised)}
    names = {name: value.values if name in formats else value for name, value in names.items()}
    known = weight_names.aliases(stage, expected)
    prefix, complete = _prefix(names, known, expected, file)
    if prefix:
        notes.append(f"the prefix {prefix!r} was taken off all names")

    weights: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    counts: Counter[str] = Counter()  # by format in the file
    for name, value in names.items():
        meant = known.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if meant is None:
            if not any(end in of_other_stages for end in _ends(name)):
                rest[name] = value
        elif meant in weights:
            raise WorkbenchError(f"{file}: {name} and another name both mean {meant}; expected one of them")
        else:
            weights[meant] = value
            counts[formats.get(name, "")] += 1

    embedding = weights.get(weight_names.EMBED)
    is_merged = is_dense(embedding) and embedding.shape > expected[weight_names.EMBED]
    if is_merged and "llm_decoder.weight" not in weights:
        raise WorkbenchError(
            f"{file} has no llm_decoder.weight, and an embedding of {len(embedding)} ids: as servers merge "
            "it, one vocabulary for text and speech, which does not say where speech begins. Use the llm.pt "
            "that it was made from"
        )
    if not complete or any(isinstance(v, Tensor) and v.dtype not in FLOATS for v in weights.values()):
        check_schemes(list(names), file)  # codes and scales in place of weights
    unknown = _leave_out(rest, prefix, file, notes)
    counts.pop("", None)
    if counts:
        first, *more = [f"{n} tensors in {kind}" for kind, n in counts.most_common()]
        listed = ", ".join([first, *(each.replace(" tensors", "") for each in more)])
        notes.append(f"{stage}: {listed}, dequantised to float32")
    _cast_float64(weights, notes)
    if stage == "hift":
        _unfold_weight_norm(weights, expected, file, notes)
    if stage == "flow":
        _compute_rotary(weights, expected, notes)
    return FoundStage(weights | unknown, [f"{file}: {note}" for note in notes], complete)


def _flatten(content: Mapping[Any, Any], file: str) -> dict[str, Any]:
    """Return nested dicts as one, with dotted names."""
    flat: dict[str, Any] = {}
    n_names = 0
    waiting = [("", 0, content)]
    while waiting:
        before, depth, mapping = waiting.pop()
        n_names += len(mapping)  # counted where one dict stands in many places, too
        if n_names > MAX_NAMES:
            raise WorkbenchError(f"{file} holds over {MAX_NAMES:,} names; expected those of a state_dict")
        for key, value in mapping.items():
            name = f"{before}{str(key)[:MAX_NAME]}"
            if isinstance(value, Mapping) and depth < MAX_DEPTH:
                waiting.append((f"{name}.", depth + 1, value))
            else:
                flat[name] = value
    return flat


def _without_wrappers(flat: dict[str, Any], file: str, notes: list[str]) -> dict[str, Any]:
    """Take the parts that wrappers add out of all names."""
    plain: dict[str, Any] = {}
    dropped = set()
    for name, value in flat.items():
        parts = name.split(".")
        dropped |= WRAPPERS.intersection(parts)
        short = ".".join(part for part in parts if part not in WRAPPERS)
        if isinstance(plain.get(short), WEIGHTS) and isinstance(value, WEIGHTS):
            raise WorkbenchError(f"{file}: {name} and another name both mean {short}; expected one of them")
        if not isinstance(plain.get(short), WEIGHTS):
            plain[short] = value
    if dropped:
        notes.append(f"{', '.join(sorted(dropped))} was taken out of names")
    return plain


def _prefix(
    names: dict[str, Any], known: dict[str, str], expected: dict[str, tuple], file: str
) -> tuple[str, bool]:
    """Return the prefix under which most weights stand, and whether all of them do."""
    covered: dict[str, set[str]] = defaultdict(set)
    for name in names:
        for end in _ends(name):
            if end in known:
                covered[name.removesuffix(end)].add(known[end])
    if not covered:
        return "", False
    ranked = sorted(covered, key=lambda prefix: (-len(covered[prefix]), len(prefix)))
    complete = [prefix for prefix in ranked if not weight_names.missing(expected, covered[prefix])]
    if not complete:
        return ranked[0], False
    first = complete[0]
    for other in ranked:
        if other == first or 2 * len(covered[other]) < len(covered[first]):
            continue  # a short name of a layer may end as a weight here does
        if not _same_weights(names, known, first, other):
            shown = " and ".join(repr(prefix or "no prefix") for prefix in (first, other))
            raise WorkbenchError(
                f"{file} holds two different sets of these weights, under {shown}, such as a model and its "
                "moving average; save the one that you mean in a file of its own"
            )
    return first, True


def _ends(name: str) -> Iterator[str]:
    """Yield the last part of a dotted name, the last two parts, and so on."""
    parts = name.split(".")
    for n in range(1, min(MAX_PARTS, len(parts)) + 1):
        yield ".".join(parts[-n:])


def _same_weights(names: dict[str, Any], known: dict[str, str], first: str, other: str) -> bool:
    """Whether two prefixes hold equal tensors, as far as both have them."""
    for name in known:
        a, b = names.get(first + name), names.get(other + name)
        if a is not None and b is not None and not (is_dense(a) and is_dense(b) and torch.equal(a, b)):
            return False
    return True


def _leave_out(rest: dict[str, Any], prefix: str, file: str, notes: list[str]) -> dict[str, Any]:
    """Note what is no weight of the stage; return what may be one."""
    unknown = {}
    others: Counter[str] = Counter()
    buffers = []
    for name, value in rest.items():
        if not isinstance(value, Tensor):
            continue  # epoch, learning rates, a configuration
        inner = name.removeprefix(prefix)
        first, last = inner.split(".")[0], inner.split(".")[-1]
        is_other = first in OTHER_MODULES
        is_counter = value.ndim == 0 and (last in COUNTERS or "." not in name)
        if ADAPTERS.search(name) and not is_other:
            raise WorkbenchError(
                f"{file} holds an adapter, such as {name}; expected plain weights. Merge it into them first "
                "(peft: merge_and_unload)"
            )
        if QUANTISED.search(name) and not is_other:
            unknown[name] = value
        elif is_other or (not name.startswith(prefix) and not is_counter):
            others[first] += 1
        elif last in BUFFERS:
            buffers.append(inner)
        elif not is_counter:
            unknown[inner] = value
    if others:
        shown = ", ".join(f"{first} ({n} tensor{'s' * (n > 1)})" for first, n in others.most_common(5))
        notes.append(f"{shown} left out, no part of this stage")
    if buffers:
        shown = ", ".join(buffers[:3]) + (", ..." if len(buffers) > 3 else "")
        notes.append(f"{shown} left out: computed, or drawn from a seed, not stored")
    return unknown


def _cast_float64(weights: dict[str, Any], notes: list[str]) -> None:
    """Turn float64 into the narrowest type that holds the values, float32 where none does."""
    rounded = 0
    cast = 0
    for name, value in weights.items():
        if is_dense(value) and value.dtype == torch.float64:
            weights[name] = narrowest(value)
            cast += 1
            rounded += not torch.equal(weights[name].double().nan_to_num(), value.nan_to_num())
    if cast:
        how = f"{rounded} of them rounded" if rounded else "exactly"
        notes.append(f"{cast} tensors cast from float64 to the type that holds them, {how}")


def _unfold_weight_norm(
    weights: dict[str, Any], expected: dict[str, tuple], file: str, notes: list[str]
) -> None:
    """Split weights with weight norm multiplied out into a norm and a direction, as the model keeps them.

    The direction is the weight itself, so that the product is the weight again.
    """
    unfolded = 0
    for g_name, v_name, folded_name in weight_names.weight_norms(expected):
        if folded_name not in weights:
            continue
        weight = weights.pop(folded_name)
        if g_name in weights or v_name in weights:
            raise WorkbenchError(
                f"{file} holds {folded_name} with weight norm multiplied out, and parts of it as well "
                f"({g_name}); expected one of the two"
            )
        if not (is_dense(weight) and weight.is_floating_point() and weight.shape == expected[v_name]):
            raise WorkbenchError(
                f"{file}: {folded_name}, weight norm multiplied out: expected {expected[v_name]} of floats, "
                f"found {describe(weight)}"
            )
        weights[g_name] = torch.norm_except_dim(weight.float(), 2, 0)
        is_zero = weights[g_name] == 0  # a direction of zero would be divided by zero
        weights[v_name] = torch.where(is_zero, torch.ones_like(weight), weight)
        unfolded += 1
    if unfolded:
        notes.append(
            f"weight norm was multiplied out in {unfolded} weights; they are split into norm and direction "
            "again, whose product is the same weight; the content hash is not that of the original parts"
        )


def _compute_rotary(weights: dict[str, Any], expected: dict[str, tuple], notes: list[str]) -> None:
    """Compute the angles of the rotary embedding where a port did not store them."""
    name = weight_names.ROTARY
    if weights and name not in weights:
        weights[name] = RotaryEmbed(2 * expected[name][0]).inv_freq
        notes.append(f"{name} was missing and is computed")
