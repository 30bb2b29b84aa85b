"""Read HyperPyYAML, the language of `cosyvoice3.yaml`, as plain data.

The HyperPyYAML package imports and calls the Python object that a tag names. Here a tag becomes a `Tagged`
value and nothing is called, so that a file from an unknown source is safe to open. Reading has two steps:
`_Builder` turns YAML nodes into values, `_Resolver` replaces each `!ref` by the value that it names.
"""

import ast
import math
import operator
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import WorkbenchError
from workbench.files import check_regular

# Bounds for damaged or hostile files; the released file has about 500 nodes in 10 kB.
MAX_BYTES = 1_000_000
MAX_NODES = 20_000  # an alias counts each time it is used
MAX_DEPTH = 50
MAX_TEXT = 10_000  # characters of the text that a !ref makes
MAX_EXPRESSION = 200  # characters of the arithmetic in a !ref
MAX_NUMBER = 2**63
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_NUMBER = r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
# Atomic groups: a run of digits is read in one way only, so that the time is linear in the text.
_ARITHMETIC = re.compile(rf"(?>_\d+|{_NUMBER}|[\s+\-*/()])+")
_REF = re.compile(r"<([^<>]*)>")
_TARGET = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
_YAML = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Tagged:
    """A node that HyperPyYAML would execute: `!new:a.b.C {x: 1}` is `Tagged("new", "a.b.C", {"x": 1})`."""

    tag_kind: str  # new, name, apply or module
    target: str
    args: Any  # dict or list

    @property
    def name(self) -> str:
        """The last part of the target, which is the name of a class or function."""
        return self.target.rpartition(".")[2]


@dataclass(frozen=True, eq=False)
class _Ref:
    """A `!ref` that is not resolved yet."""

    text: str
    line: int


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads YAML 1.2 floats such as 1e-06, and stops early on a huge file."""

    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self.composed += 1
        if self.composed > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} values")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(f"{_YAML}float", re.compile(rf"[-+]?{_NUMBER}$"), list("-+0123456789"))


def read(path: str | Path) -> dict[str, Any]:
    """Read a HyperPyYAML file without executing any of it.

    Parameters
    ----------
    path : str or Path
        At most 1 MB of UTF-8.

    Returns
    -------
    dict
        Plain values and `Tagged` ones; every `!ref` is resolved.

    Raises
    ------
    WorkbenchError
        When the file is missing, too large, not YAML, or holds unknown tags, duplicate keys, or
        missing or cyclic references; with the line where one is known.
    """
    path = Path(path)
    try:
        check_regular(path)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise WorkbenchError(f"{path} is larger than 1 MB; expected a configuration of a few kilobytes")
        loader = _Loader(data.decode("utf-8-sig"))
        try:
            tree = _Builder(path, loader).build_root(_root_node(path, loader))
        finally:
            loader.dispose()
        return _Resolver(path, tree).resolve(tree)
    except OSError as error:
        raise WorkbenchError(
            f"{path} cannot be read ({error.strerror}); expected a cosyvoice3.yaml"
        ) from error
    except UnicodeDecodeError as error:
        raise WorkbenchError(f"{path} is not UTF-8 text (byte {error.start}); expected YAML") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise WorkbenchError(f"{path}{where}: not valid YAML: {problem}") from error
    except RecursionError as error:
        raise WorkbenchError(
            f"{path} has too deeply nested values or references; expected a flat configuration"
        ) from error


def _root_node(path: Path, loader: _Loader) -> yaml.Node | None:
    try:
        return loader.get_single_node()
    except (ValueError, OverflowError) as error:  # an escape such as "\U00110000", which is no character
        line = loader.line + 1
        raise WorkbenchError(f"{path}, line {line}: not valid YAML: an escape names no character") from error


def show(value: Any) -> str:
    """Describe a value in a few characters, whatever it holds."""
    if isinstance(value, Tagged):
        return f"!{value.tag_kind}:{value.target[:80]}"
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Builder:
    """Turn YAML nodes into values, bounded in number and depth."""

    def __init__(self, path: Path, loader: _Loader) -> None:
        self.path = path
        self.loader = loader
        self.count = 0

    def error(self, node: yaml.Node, message: str) -> WorkbenchError:
        return WorkbenchError(f"{self.path}, line {node.start_mark.line + 1}: {message}")

    def build_root(self, node: yaml.Node | None) -> dict[str, Any]:
        tree = None if node is None else self.build(node, 0)
        if not isinstance(tree, dict):
            raise WorkbenchError(
                f"{self.path} holds {show(tree)}; expected a mapping with llm, flow and hift"
            )
        return tree

    def build(self, node: yaml.Node, depth: int) -> Any:
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            raise self.error(node, f"more than {MAX_NODES} values or {MAX_DEPTH} levels; are aliases nested?")
        tag = node.tag
        if tag in ("!ref", "!copy") and isinstance(node, yaml.ScalarNode):
            return _Ref(node.value, node.start_mark.line + 1)
        kind, colon, target = tag.partition(":")
        if colon and kind in ("!new", "!name", "!apply", "!module"):
            if not _TARGET.fullmatch(target):
                raise self.error(node, f"{tag[:80]!r} names no Python object; expected {kind}:package.name")
            if isinstance(node, yaml.ScalarNode):
                args = [node.value] if node.value else {}
            else:
                args = self.collection(node, depth)
            return Tagged(kind[1:], target, args)
        if tag in (f"{_YAML}map", f"{_YAML}seq") and not isinstance(node, yaml.ScalarNode):
            return self.collection(node, depth)
        if isinstance(node, yaml.ScalarNode) and tag.startswith(_YAML):
            return self.scalar(node)
        raise self.unknown(node)

    def unknown(self, node: yaml.Node) -> WorkbenchError:
        return self.error(
            node, f"unknown tag {node.tag[:80]!r}; expected !new, !name, !apply, !module or !ref"
        )

    def collection(self, node: yaml.Node, depth: int) -> dict | list:
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, depth + 1) for child in node.value]
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_YAML}str":
                raise self.error(key_node, f"key {show(key)} is not plain text")
            if key in built:
                raise self.error(key_node, f"key {show(key)} is there twice; delete one")
            built[key] = self.build(value_node, depth + 1)
        return built

    def scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.removeprefix(_YAML)
        if kind in ("str", "timestamp", "value"):
            return node.value
        if kind not in ("int", "float", "bool", "null"):
            raise self.unknown(node)
        if ":" in node.value:  # base 60 in YAML 1.1, such as 1:30; text in YAML 1.2, which HyperPyYAML reads
            return node.value
        try:
            value = self.loader.construct_object(node)
        except (ValueError, KeyError, IndexError, OverflowError) as error:  # such as "!!int x"
            raise self.error(node, f"{show(node.value)} is not of type {kind}") from error
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise self.error(node, "the number has more than 63 bits")
        return value


class _Resolver:
    """Replace each `_Ref` by the value that it names."""

    def __init__(self, path: Path, tree: dict[str, Any]) -> None:
        self.path = path
        self.tree = tree
        self.resolved: dict[int, Any] = {}  # by id of the raw value; all values stay alive, so ids are unique
        self.in_progress: set[int] = set()  # ids of the values that contain the current one

    def error(self, ref: _Ref, message: str) -> WorkbenchError:
        return WorkbenchError(f"{self.path}, line {ref.line}: !ref {ref.text[:80]}: {message}")

    def resolve(self, raw: Any) -> Any:
        if not isinstance(raw, dict | list | Tagged | _Ref):
            return raw
        if id(raw) in self.resolved:
            return self.resolved[id(raw)]
        if id(raw) in self.in_progress:
            where = f", line {raw.line}" if isinstance(raw, _Ref) else ""
            raise WorkbenchError(f"{self.path}{where}: a !ref leads back to itself; expected no cycle")
        self.in_progress.add(id(raw))
        if isinstance(raw, dict):
            value: Any = {key: self.resolve(child) for key, child in raw.items()}
        elif isinstance(raw, list):
            value = [self.resolve(child) for child in raw]
        elif isinstance(raw, Tagged):
            value = Tagged(raw.tag_kind, raw.target, self.resolve(raw.args))
        else:
            value = self.evaluate(raw)
        self.in_progress.discard(id(raw))
        self.resolved[id(raw)] = value
        self.resolved[id(value)] = (
            value  # so that a value that was resolved is not copied when it is met again
        )
        return value

    def lookup(self, ref: _Ref, name: str) -> Any:
        """Return the value of `a`, `a.b` or `a[b]`."""
        value: Any = self.tree
        for part in re.findall(r"[^.\[\]]+", name) or [""]:
            value = self.resolve(value) if isinstance(value, _Ref) else value
            inside = value.args if isinstance(value, Tagged) else value
            if isinstance(inside, dict) and part in inside:
                value = inside[part]
            elif isinstance(inside, list) and part.isdecimal() and len(part) < 6 and int(part) < len(inside):
                value = inside[int(part)]
            else:
                raise self.error(ref, f"nothing has the name {show(part)} there")
        return self.resolve(value)

    def evaluate(self, ref: _Ref) -> Any:
        """Return the value of a reference: `<a>` is what a is, `<a> * 2` a number, `<a>/x` a text."""
        text = ref.text.strip()
        values = [self.lookup(ref, name) for name in _REF.findall(text)]
        if not values:
            raise self.error(ref, "names nothing; expected <name>")
        if _REF.fullmatch(text):
            return values[0]
        if not all(isinstance(v, int | float | str) for v in values):
            raise self.error(ref, f"mixes {', '.join(show(v) for v in values[:3])}; expected numbers or text")
        # "<a> * <b> + 1" -> "_0 * _1 + 1": names without values, which are put in when it is calculated.
        counter = iter(range(len(values)))
        expression = _REF.sub(lambda _: f"_{next(counter)}", text)
        numeric = not any(isinstance(v, bool | str) for v in values)
        if numeric and len(expression) <= MAX_EXPRESSION and _ARITHMETIC.fullmatch(expression):
            return self.calculate(ref, expression, values)
        if len(text) + sum(len(str(v)) for v in values) > MAX_TEXT:
            raise self.error(ref, f"makes more than {MAX_TEXT} characters")
        remaining = iter(values)
        return _REF.sub(lambda _: str(next(remaining)), text)

    def calculate(self, ref: _Ref, expression: str, values: list[float]) -> float:
        """Return the result of an arithmetic expression, by its syntax tree: nothing is evaluated as code."""

        def value(node: ast.AST) -> float:
            match node:
                case ast.Constant(value=int() | float() as number):
                    return number
                case ast.Name(id=name) if name[1:].isdecimal() and int(name[1:]) < len(values):
                    return values[int(name[1:])]
                case ast.UnaryOp(op=ast.USub(), operand=operand):
                    return -value(operand)
                case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                    result = OPERATORS[type(op)](value(left), value(right))
                    if math.isfinite(result) and abs(result) <= MAX_NUMBER:
                        return result
            raise ValueError("only + - * / // on numbers of at most 63 bits")

        try:
            return value(ast.parse(expression.strip(), mode="eval").body)
        except (SyntaxError, ValueError, ArithmeticError) as error:
            raise self.error(ref, f"cannot be calculated ({error})") from error
