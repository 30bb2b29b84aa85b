"""Checked access to the values of a configuration file; an error says which value is wrong, and where."""

from typing import Any

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.hyperyaml import Tagged, show


class Section:
    """A mapping in a configuration file, whose values are checked when they are read.

    Parameters
    ----------
    args : dict
        Names with values; anything else is refused.
    where : str
        What error messages call the section.
    """

    def __init__(self, args: Any, where: str) -> None:
        if not isinstance(args, dict):
            raise WorkbenchError(f"{where} holds {show(args)}; expected names with values")
        self.args = args
        self.where = where

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value; it is an error if there is neither a value nor a default."""
        if name not in self.args and default is None:
            raise WorkbenchError(
                f"{self.where} has no {name!r}; is this the yaml of a CosyVoice3 checkpoint?"
            )
        return self.args.get(name, default)

    def allow_only(self, names: tuple[str, ...]) -> None:
        """Refuse names that nothing reads, such as a misspelt option."""
        for name in self.args:
            if name not in names:
                raise WorkbenchError(f"{self.where} has {show(name)}; expected only {', '.join(names)}")

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """Return a whole number of a range, both ends included."""
        return self._in_range(name, low, high, default, int, "a whole number")

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """Return a number of a range, both ends included, as a float."""
        return float(self._in_range(name, low, high, default, int | float, "a number"))

    def size(self, name: str, high: int = 65_536, default: int | None = None) -> int:
        """Return a whole number from 1."""
        return self.integer(name, 1, high, default)

    def sizes(self, **highs: int) -> dict[str, int]:
        """Return several whole numbers from 1 by name, each with its own upper bound."""
        return {name: self.size(name, high) for name, high in highs.items()}

    def integers(
        self, name: str, low: int = 1, high: int = 1024, max_length: int = 16, default: Any = None
    ) -> tuple[int, ...]:
        """Return a list of 1 to `max_length` whole numbers."""
        items = self._items(name, max_length, f"1 to {max_length} whole numbers", default)
        return tuple(items.integer(item, low, high) for item in items.args)

    def integer_lists(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Return a list of lists of whole numbers."""
        items = self._items(name, 16, "lists of whole numbers")
        return tuple(items.integers(item, high=64) for item in items.args)

    def section(self, name: str, default: dict | None = None) -> "Section":
        """Return a nested mapping."""
        return Section(self.get(name, default), f"{self.where} {name}")

    def node(self, name: str, expected: str) -> "Section":
        """Return the arguments of a tagged value, whose class or function must be `expected`."""
        found = self.get(name)
        if not isinstance(found, Tagged) or found.name != expected:
            shown = found.target[:80] if isinstance(found, Tagged) else show(found)
            raise WorkbenchError(
                f"{self.where} {name}: found {shown}; this workbench opens CosyVoice3, where it is {expected}"
                ". Choose a Fun-CosyVoice3 checkpoint"
            )
        return Section(found.args, f"{self.where} {name}")

    def _in_range(self, name: str, low: float, high: float, default: Any, types: Any, expected: str) -> Any:
        found = self.get(name, default)
        is_number = isinstance(found, types) and not isinstance(found, bool)  # True is an int to Python
        if not is_number or not low <= found <= high:
            raise WorkbenchError(
                f"{self.where}: {name} is {show(found)}; expected {expected} from {low} to {high}"
            )
        return found

    def _items(self, name: str, max_length: int, expected: str, default: Any = None) -> "Section":
        """Return a list as a section with the names `name[0]`, `name[1]` and so on."""
        found = self.get(name, default)
        if not isinstance(found, list | tuple) or not 1 <= len(found) <= max_length:
            raise WorkbenchError(f"{self.where}: {name} is {show(found)}; expected {expected}")
        return Section({f"{name}[{i}]": item for i, item in enumerate(found)}, self.where)


def check_equal(what: str, values: dict[str, Any]) -> None:
    """Refuse values under several names that must be one and the same."""
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{name} = {value}" for name, value in values.items())
        raise WorkbenchError(f"{what}: {listed}; expected one and the same value")
