"""Checked access to the values of a configuration file, with messages that say where."""

from typing import Any

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.hyperyaml import Tagged, show


class Section:
    """The names and values of one node.

    Parameters
    ----------
    args : dict
        Anything else is refused.
    where : str
        How messages call it.
    """

    def __init__(self, args: Any, where: str) -> None:
        if not isinstance(args, dict):
            raise WorkbenchError(f"{where} holds {show(args)}; expected names with values")
        self.args = args
        self.where = where

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value; an error when there is neither it nor a default."""
        if name not in self.args and default is None:
            raise WorkbenchError(
                f"{self.where} has no {name!r}; is this the yaml of a CosyVoice3 checkpoint?"
            )
        return self.args.get(name, default)

    def only(self, names: tuple[str, ...]) -> None:
        """Refuse names that nothing would read."""
        for name in self.args:
            if name not in names:
                raise WorkbenchError(f"{self.where} has {show(name)}; expected only {', '.join(names)}")

    def number(self, name: str, low: float, high: float, default: Any = None, whole: bool = True) -> Any:
        """Return a number of a range, both ends included."""
        found = self.get(name, default)
        right = isinstance(found, int if whole else int | float) and not isinstance(found, bool)
        if not right or not low <= found <= high:
            kind = "a whole number" if whole else "a number"
            raise WorkbenchError(
                f"{self.where}: {name} is {show(found)}; expected {kind} from {low} to {high}"
            )
        return found if whole else float(found)

    def size(self, name: str, high: int = 65_536, default: int | None = None) -> int:
        """Return a whole number from 1."""
        return self.number(name, 1, high, default)

    def each(self, **highest: int) -> dict[str, int]:
        """Return several sizes under their own names."""
        return {name: self.size(name, high) for name, high in highest.items()}

    def real(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """Return a number as a float."""
        return self.number(name, low, high, default, whole=False)

    def sizes(
        self, name: str, high: int = 1024, default: Any = None, most: int = 16, low: int = 1
    ) -> tuple[int, ...]:
        """Return a list of 1 to `most` whole numbers."""
        items = self._items(name, most, f"1 to {most} whole numbers", default)
        return tuple(items.number(key, low, high) for key in items.args)

    def size_lists(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Return a list of lists of whole numbers."""
        items = self._items(name, 16, "lists of whole numbers")
        return tuple(items.sizes(key, high=64) for key in items.args)

    def _items(self, name: str, most: int, expected: str, default: Any = None) -> "Section":
        found = self.get(name, default)
        if not isinstance(found, list | tuple) or not 1 <= len(found) <= most:
            raise WorkbenchError(f"{self.where}: {name} is {show(found)}; expected {expected}")
        return Section({f"{name}[{i}]": item for i, item in enumerate(found)}, self.where)

    def part(self, name: str, default: Any = None) -> "Section":
        """Open a value that holds names with values."""
        return Section(self.get(name, default), f"{self.where} {name}")

    def node(self, name: str, expected: str) -> "Section":
        """Open a value that must be a node of the class or function `expected`."""
        found = self.get(name)
        if not isinstance(found, Tagged) or found.name != expected:
            got = found.target[:80] if isinstance(found, Tagged) else show(found)
            raise WorkbenchError(
                f"{self.where} {name}: found {got}; this workbench opens CosyVoice3, where it is {expected}. "
                "Choose a Fun-CosyVoice3 checkpoint"
            )
        return Section(found.args, f"{self.where} {name}")


def agree(where: str, **found: Any) -> None:
    """Refuse numbers that contradict each other; `a__b` is shown as `a.b`."""
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name.replace('__', '.')} = {value}" for name, value in found.items())
        raise WorkbenchError(f"{where}: {listed}; expected one and the same value")
