"""Read what logs print of a tensor beside statistics: lists of token ids, and the sums of ggml callbacks."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from workbench.trace.importers.logs.log_names import UNKNOWN, LogNames, TensorName, any_spelling, with_spaces
from workbench.trace.importers.logs.log_numbers import Rounded, read_numbers
from workbench.trace.schema import FIELDS

# ---- token ids: "generated_tokens(19): 236 234 8", "speech_token = tensor([[236, 234]], device='cuda:0')"

COUNT = r"(?:\s*[(\[]\s*(?:(?:n|len|count)\s*=\s*)?(?P<count>[0-9]{1,6})\s*[)\]])?"  # "(19)"
OPENING = r"[\"']?(?P<sign>\s*+[=:]?\s*+)(?P<opening>(?!torch\.size)(?:[a-z_.]{1,20}\(|vec!?\s?)?[\[({]*)\s*+"
IDS = r"(?P<ids>[0-9][0-9,;\s]*+)"
# Behind a complete list: brackets and no further list, as in "]], device='cuda:0')"; else the line's end.
END_OF_BRACKETS = re.compile(r"[\])}]+(?!\s*,?\s*[\[0-9])")
END = re.compile(r"\s*\.?\s*$")
MAX_DIGITS = 9  # of an id; a vocabulary is far smaller
MIN_LISTED = 2  # ids; one number behind a name without brackets is rather their count
MIN_REFUSED = (
    3  # numbers; fewer that do not look like a list are not counted as a list that was not understood
)
# Integers that only signs separate, as in "<236><234><8>", "236/234/8" or "<|s_236|><|s_234|><|s_8|>".
OTHER_LIST = re.compile(
    r"[^a-z0-9]{0,8}(?:(?:vec|list|ids|array)[^a-z0-9]{1,4})?(?:[a-z]_)?[0-9]{1,9}"
    r"(?:[^a-z0-9.+-]{1,8}(?:[a-z]_)?[0-9]{1,9}(?![0-9.a-z])){2}"
)
# A list under a name that the table does not have: "tokens (3): 236 234 8".
OTHER_NAME = re.compile(
    r"(?<![a-z0-9])(?:tokens?|token[ _]ids|ids|codes)(?=\s*(?:\([0-9]{1,6}\))?\s*[=:])\s*(?:\([0-9]{1,6}\))?"
    r"\s*[=:]\s*[\[({]*[0-9]{1,9}(?:[\s,;]{1,3}[0-9]{1,9}(?![0-9.a-z])){2}"
)


# A list that goes on in the next lines: "speech tokens: [", "generated tokens:", "token_ids = [1, 2,".
UNFINISHED = re.compile(r"tokens?\b|ids\b", re.IGNORECASE)
HEAD = re.compile(r"[:=]\s*(?:[a-z_.]{1,20}\()?[\[({]*\s*(?:[0-9]{1,9}[,;\s]+)*$", re.IGNORECASE)
CONTINUED = re.compile(r"[\[(\s]*[0-9]{1,9}(?:[,;\s]+[0-9]{1,9})*[,;\s\])}]*$")
CLOSING = re.compile(r"[\[\])}\s,;]*[\])}][\[\])}\s,;]*$")
MAX_JOINED = 20_000  # characters of a list


def with_whole_lists(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield numbered lines, with a list of ids over several lines as one, numbered as its first.

    Parameters
    ----------
    lines : iterable of (int, str)
    """
    head = length = 0  # number of the line that began a list; characters of the list so far
    parts: list[str] = []  # of a list that may go on
    for number, text in lines:
        if parts:
            is_closing = CLOSING.match(text) is not None
            if length < MAX_JOINED and (is_closing or CONTINUED.match(text)):
                parts.append(text.strip())
                length += len(text)
                if parts[-1].endswith(("]", ")", "}")):
                    yield head, " ".join(parts)
                    parts = []
                continue
            yield head, " ".join(parts)
            parts = []
        if UNFINISHED.search(text) and HEAD.search(text.rstrip()):
            head, length, parts = number, len(text), [text.rstrip()]
        else:
            yield number, text
    if parts:
        yield head, " ".join(parts)


class TokenIds(NamedTuple):
    """A list of token ids."""

    tensor: TensorName  # UNKNOWN for a list under a name that the table does not have
    ids: tuple[int, ...] | None  # None where the list is not complete, or its name unknown
    start: int  # position of the name


class TokenIdReader:
    """Find lists of token ids.

    Parameters
    ----------
    names : LogNames
    """

    def __init__(self, names: LogNames) -> None:
        self._names = names
        of_ids = [
            name
            for name, tensor in names.tensors.items()
            if tensor.field and FIELDS[tensor.field].unit == "id"
        ]
        pattern = any_spelling(of_ids) if of_ids else "(?!)"
        self._name = re.compile(f"(?<![a-z0-9])(?P<name>{pattern})")
        self._list = re.compile(f"{COUNT}{OPENING}{IDS}(?P<rest>.*)", re.DOTALL)

    def read(self, text: str) -> TokenIds | None:
        """Return the list of ids on a line in lower case; None where there is none."""
        name = self._name.search(text)
        if name is None:
            other = OTHER_NAME.search(text) if "token" in text or "ids" in text or "codes" in text else None
            return TokenIds(UNKNOWN, None, other.start()) if other else None
        listed = self._list.match(text, name.end())
        tensor = self._names.tensors[with_spaces(name["name"])]
        not_read = TokenIds(tensor, None, name.start())
        if listed is None:
            return not_read if OTHER_LIST.match(text, name.end()) else None
        ids = listed["ids"].strip(" \t\r\n,;")
        parts = re.split(r"\s*[,;]\s*", ids) if "," in ids or ";" in ids else ids.split()
        is_shape = listed["opening"].startswith("(") and not listed["sign"].strip()  # "speech_token (1, 141)"
        if is_shape:
            return None
        if len(parts) < MIN_LISTED and not listed["opening"]:
            return not_read if OTHER_LIST.match(text, name.end()) else None
        is_integer = all(part.isdigit() and len(part) <= MAX_DIGITS for part in parts)
        count_fits = listed["count"] is None or int(listed["count"]) == len(parts)
        end = END_OF_BRACKETS if listed["opening"] else END
        if end.match(listed["rest"]) and is_integer and count_fits:
            return TokenIds(tensor, tuple(int(part) for part in parts), name.start())
        return not_read if len(parts) >= MIN_REFUSED else None


# ---- ggml: a callback prints each tensor of the graph, at the end "sum = -1468.477535"

NODE = re.compile(
    r"(?<![a-z_])(?P<who>[a-z_]+):\s+(?P<name>[\w.\-]+?)(?:-(?P<index>[0-9]{1,6}))?(?P<view>\s+\([^()]*\))?"
    r"\s+=\s+\([a-z0-9_]+\)\s.*=\s\{(?P<sizes>[0-9]+(?:,\s*[0-9]+){0,3})\}\s*$"
)
SUM = re.compile(r"\s*sum\s*=\s*(\S+)\s*$")
# The first versions of the callback add up the printed values alone: three at each end of a dimension.
SUMS_PRINTED_VALUES = "ggml_debug"
MAX_PRINTED = 6
SUM_ERROR = 3e-5  # relative, of a sum that is made in float32: measured up to 0.8e-5 for 25,600 values


class NodeMean(NamedTuple):
    """The mean of one tensor, from the sum that a callback prints."""

    tensor: TensorName
    index: int | None  # of the loop, from 0; None where the name has none
    shape: tuple[int, ...]
    mean: Rounded | None  # None where the sum is not of all values


class GgmlCallbackReader:
    """Find tensors that a ggml evaluation callback prints, one line after another.

    Parameters
    ----------
    names : LogNames
    """

    def __init__(self, names: LogNames) -> None:
        self._names = names
        self._node: re.Match[str] | None = None  # of the table, whose sum is not yet printed

    def read(self, text: str) -> NodeMean | None:
        """Return a tensor when its sum is printed; None for any other line."""
        if "= {" in text:
            node = NODE.search(text)
            name = with_spaces(node["name"]) if node and not node["view"] else ""
            is_known = self._names.tensors.get(name, UNKNOWN).field
            self._node = node if is_known else None
            return None
        printed = SUM.match(text) if self._node else None
        if printed is None:
            return None
        node, self._node = self._node, None
        shape = tuple(int(size) for size in node["sizes"].split(","))
        count = 1
        for size in shape:
            count *= size
        is_partial = node["who"] == SUMS_PRINTED_VALUES and max(shape) > MAX_PRINTED
        numbers = read_numbers([printed[1]])
        mean = None
        if numbers and count and not is_partial:
            (total,) = numbers
            mean = Rounded(total.value / count, (total.half_unit + SUM_ERROR * abs(total.value)) / count)
        index = int(node["index"]) if node["index"] else None
        return NodeMean(self._names.tensors[with_spaces(node["name"])], index, shape, mean)
