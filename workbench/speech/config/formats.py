"""Number formats of quantised weights, and the rules that say which weights have which format.

A format is a name, and details behind a colon: `q4_k`, `int4:group=128,asymmetric`, `mlx4:group=32`.
`FORMATS` is the table of all names and their details. Rules are pairs of a glob of names and a format.
"""

import itertools
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from workbench.errors import WorkbenchError, first_line
from workbench.files import read_text_file

GROUPS = (32, 64, 128, 256)
NF4_BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
HALF = ("float16", "bfloat16")
FALLBACKS = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}  # where 256 does not divide a row
MAX_RULES = 2000
MAX_GLOB = 300  # characters
GLOB = re.compile(r"[\w.*?\[\]!-]+")
LINE = """'"flow.decoder.*" = "q8_0"'"""


class Kind(NamedTuple):
    """One row of the table of formats."""

    family: str  # the module that quantises: "float", "ggml", "integer", "mlx", "fp8" or "nf4"
    bits: float  # of one weight, without scales
    scale_bits: float  # of the scales (and offsets) of one block, group, channel or tensor
    block: int  # weights that share a scale; 0 where a detail says it
    details: tuple[tuple[str, ...], ...]  # choices, each with its default first
    library: str  # whose numerics


_SIZES = tuple(f"group={n}" for n in GROUPS)
_BLOCKS = tuple(f"group={n}" for n in NF4_BLOCKS)
_INTEGER = (("channel", "tensor", *_SIZES), ("symmetric", "asymmetric", "offset"))
_INPUTS = ("weight-only", "dynamic")  # whether a linear layer's inputs are quantised as well
_GGML = (_INPUTS,)
_MLX = (("group=64", "group=32", "group=128"), ("float32", "float16", "bfloat16"))
_FP8 = (("channel", "tensor"),)
FORMATS = {
    "float32": Kind("float", 32, 0, 1, (), "torch"),
    "float16": Kind("float", 16, 0, 1, (), "torch"),
    "bfloat16": Kind("float", 16, 0, 1, (), "torch"),
    "q8_0": Kind("ggml", 8, 16, 32, _GGML, "ggml"),
    "q6_k": Kind("ggml", 6, 16 + 16 * 8, 256, _GGML, "ggml"),
    "q5_k": Kind("ggml", 5, 32 + 8 * 12, 256, _GGML, "ggml"),
    "q4_k": Kind("ggml", 4, 32 + 8 * 12, 256, _GGML, "ggml"),
    "q5_1": Kind("ggml", 5, 32, 32, _GGML, "ggml"),
    "q5_0": Kind("ggml", 5, 16, 32, _GGML, "ggml"),
    "q4_1": Kind("ggml", 4, 32, 32, _GGML, "ggml"),
    "q4_0": Kind("ggml", 4, 16, 32, _GGML, "ggml"),
    "int8": Kind("integer", 8, 32, 0, (*_INTEGER, ("narrow", "full"), _INPUTS), "onnxruntime, torchao"),
    "int4": Kind("integer", 4, 32, 0, _INTEGER, "onnxruntime, torchao"),
    "mlx8": Kind("mlx", 8, 64, 0, _MLX, "mlx"),
    "mlx4": Kind("mlx", 4, 64, 0, _MLX, "mlx"),
    "fp8_e4m3": Kind("fp8", 8, 32, 0, _FP8, "torchao"),
    "fp8_e5m2": Kind("fp8", 8, 32, 0, _FP8, "torchao"),
    "nf4": Kind("nf4", 4, 32, 0, (_BLOCKS,), "bitsandbytes"),
}


class Format(NamedTuple):
    """A parsed format.

    Attributes
    ----------
    name : str
        A key of `FORMATS`.
    details : tuple of str
        One choice for each of the format's details, in the order of the table.
    """

    name: str
    details: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """The format's row of the table."""
        return FORMATS[self.name]

    @property
    def block(self) -> int:
        """How many weights share a scale; 0 for a channel or a tensor."""
        if self.kind.block or not self.details[0].startswith("group="):
            return self.kind.block
        return int(self.details[0].removeprefix("group="))

    def __str__(self) -> str:
        defaults = [choices[0] for choices in self.kind.details]
        shown = [
            detail
            for position, (detail, default) in enumerate(zip(self.details, defaults, strict=True))
            # What shares a scale is always said where it is a choice.
            if detail != default or (position == 0 and not self.kind.block)
        ]
        return self.name + (":" + ",".join(shown) if shown else "")


def parse_format(text: Any) -> Format:
    """Read a format such as `int4:group=128,asymmetric`.

    Raises
    ------
    WorkbenchError
        When there is no such format, or it has no such detail.
    """
    if not isinstance(text, str):
        raise WorkbenchError(f"format is {_shown(text)}; expected text such as 'q4_k' or 'int4:group=128'")
    name, colon, tail = text.strip().lower().replace(" ", "").partition(":")
    if name not in FORMATS:
        raise WorkbenchError(
            f"there is no format {text!r:.80}; {_nearest(name, FORMATS)}expected one of {', '.join(FORMATS)}"
        )
    choices_of_detail = FORMATS[name].details
    chosen = [choices[0] for choices in choices_of_detail]
    named: set[int] = set()
    for word in tail.split(",") if colon else ():
        positions = [i for i, choices in enumerate(choices_of_detail) if word in choices]
        if not positions or positions[0] in named:
            twice = "a second detail of its kind, " if positions else ""
            allowed = "; ".join(" or ".join(choices) for choices in choices_of_detail) or "none"
            raise WorkbenchError(f"{text!r:.80} has {twice}{word!r:.40}; details of {name}: {allowed}")
        named.add(positions[0])
        chosen[positions[0]] = word
    return Format(name, tuple(chosen))


def with_inputs(text: str) -> str:
    """Return a format with quantised inputs, as its kernels may have them; unchanged where there are none.

    >>> with_inputs("q4_0"), with_inputs("nf4:group=64")
    ('q4_0:dynamic', 'nf4:group=64')
    """
    asked = parse_format(text)
    details = tuple("dynamic" if each == "weight-only" else each for each in asked.details)
    return str(Format(asked.name, details))


def every_format(max_group: int) -> list[str]:
    """Return every format of few bits that differs in its values, with up to so many weights in a group."""
    found = []
    for name, kind in FORMATS.items():
        for details in itertools.product(*kind.details) if kind.family != "float" else ():
            is_twin = "full" in details and "symmetric" not in details  # the range is full anyway
            is_refined = not {"dynamic", *HALF}.isdisjoint(details)
            if not is_twin and not is_refined and Format(name, details).block <= max_group:
                found.append(str(Format(name, details)))
    return found


def fallback(text: str) -> str | None:
    """Return the format that ggml gives rows which the blocks of another do not divide; None for others.

    >>> fallback("q4_k"), fallback("q4_0")
    ('q5_0', None)
    """
    asked = parse_format(text)
    name = FALLBACKS.get(asked.name)
    return None if name is None else str(Format(name, asked.details))


# ---- rules: which weights have which format


class Rule(NamedTuple):
    """A glob of names and the format of the weights that it matches."""

    glob: str
    format: Format

    def matches(self, name: str) -> bool:
        """Whether the glob matches a layer's name, that of a module around it, or that of its weight."""
        if fnmatchcase(name, self.glob) or fnmatchcase(name, f"{self.glob}.*"):
            return True
        return fnmatchcase(f"{name}.weight", self.glob)


def rules_text(weights: Any) -> str | None:
    """Return rules as one line, `*=q4_k` or `lm=q4_k;flow.decoder=q8_0`, from any way to write them.

    Parameters
    ----------
    weights : str, mapping of str to str, Path, or None
        A format, which is for all weights; globs with formats; a TOML file of these; or what this function
        returned.

    Raises
    ------
    WorkbenchError
        When it is none of these.
    """
    if weights is None:
        return None
    if isinstance(weights, os.PathLike):
        weights = read_rules(weights)
    if isinstance(weights, Mapping):
        pairs = list(weights.items())
    elif isinstance(weights, str) and weights.strip().endswith(".toml"):
        raise WorkbenchError(
            f"weights is {_shown(weights)}, text; a file is given as Path({_shown(weights)}), in a shell as "
            "--weights"
        )
    elif isinstance(weights, str):
        pairs = [_pair(part) for part in weights.split(";") if part.strip()]
    else:
        raise WorkbenchError(
            f"weights is {_shown(weights)}; expected a format such as 'q4_k', globs with formats such as "
            "{'lm': 'q4_k', 'flow.decoder': 'q8_0'}, the Path of a TOML file of these, or None"
        )
    if not pairs or len(pairs) > MAX_RULES:
        raise WorkbenchError(f"weights has {len(pairs)} globs with formats; expected 1 to {MAX_RULES}")
    found = []
    for glob, text in pairs:
        if not isinstance(glob, str) or len(glob) > MAX_GLOB or not GLOB.fullmatch(glob.strip()):
            raise WorkbenchError(
                f"weights has the glob {_shown(glob)}; expected names of modules with * and ?, such as "
                "'lm.*' or 'flow.decoder.estimator.transformer_blocks.0.*'"
            )
        found.append(f"{glob.strip()}={parse_format(text)}")
    return ";".join(found)


def read_rules(path: str | os.PathLike) -> dict[str, str]:
    """Read globs with formats from a TOML file, such as `"flow.decoder.*" = "q8_0"`.

    Raises
    ------
    WorkbenchError
        When it cannot be read, or holds something else.
    """
    try:
        table = tomllib.loads(read_text_file(path))
    except (ValueError, RecursionError) as error:
        raise WorkbenchError(
            f"{path} is no TOML ({first_line(error)}); expected lines such as {LINE}"
        ) from error
    found: dict[str, str] = {}
    todo: list[tuple[str, Any]] = [("", table)]
    while todo:  # in the order of the file
        name, value = todo.pop()
        if isinstance(value, dict) and len(name) <= MAX_GLOB:  # names without quotes make tables in tables
            inner = [(f"{name}.{key}" if name else key, each) for key, each in value.items()]
            todo += reversed(inner)
        elif isinstance(value, str):
            found[name] = value
        else:
            raise WorkbenchError(f"{path}: {name!r:.80} is {_shown(value)}; expected lines such as {LINE}")
    if not found:
        raise WorkbenchError(f"{path} is empty; expected lines such as {LINE}")
    return found


def rules_of(weights: str | None) -> tuple[Rule, ...]:
    """Return the rules of a line that `rules_text` made; a later rule stands above an earlier one."""
    pairs = [part.split("=", 1) for part in (weights or "").split(";") if part]
    return tuple(Rule(glob, parse_format(text)) for glob, text in pairs)


def rules_of_stage(weights: str | None, stage: str) -> str | None:
    """Return the part of the rules that may match a weight of a stage; None where there is none."""
    kept = []
    for rule in rules_of(weights):
        literal = re.split(r"[*?\[]", rule.glob, maxsplit=1)[0]  # before the first wildcard
        start = f"{stage}."
        if start.startswith(literal) or literal.startswith(start):
            kept.append(f"{rule.glob}={rule.format}")
    return ";".join(kept) or None


def format_of(rules: tuple[Rule, ...], name: str) -> Format | None:
    """Return the format of a layer's weight, from the last rule that matches; None where none does."""
    return next((rule.format for rule in reversed(rules) if rule.matches(name)), None)


def check_globs(rules: tuple[Rule, ...], names: Collection[str]) -> None:
    """Raise a WorkbenchError for a glob that matches no name.

    Parameters
    ----------
    rules : tuple of Rule
    names : collection of str
        Layers of all stages whose weights can be quantised.
    """
    for rule in rules:
        if not any(rule.matches(name) for name in names):
            raise WorkbenchError(
                f"weights: {rule.glob!r} matches none of the {len(names)} layers with a matrix; "
                f"{_nearest(rule.glob, _and_parents(names))}workbench.layers(voice) lists them"
            )


def _pair(part: str) -> tuple[str, str]:
    """Read `glob=format`; a format alone is for all weights. A format may have an = behind its colon."""
    glob, equals, text = part.partition("=")
    return (glob, text) if equals and ":" not in glob else ("*", part)


def _shown(value: Any) -> str:
    """Return a value for a message; of tables and lists, which may be deep, only what they are."""
    return f"{value!r:.80}" if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _and_parents(names: Collection[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            found[".".join(parts[:length])] = None
    return list(found)


def _nearest(name: str, known: Collection[str]) -> str:
    """Return a question that names the closest known names; empty when none is close."""
    close = get_close_matches(name.strip("*."), list(known), 3, 0.5)
    return f"did you mean {', '.join(close)}? " if close else ""
