"""A hash of a metric's code, so that rows of a changed metric are not taken from the row cache."""

import functools
import hashlib
import inspect
import json
import pickle
import uuid
from types import CodeType

from workbench.diagnose.experiments.metrics import Metric


def metric_key(metric: Metric) -> str:
    """Return a hash of a function: its name, compiled code, default values, closure and module.

    The source of the metric's whole module is part of the hash, so that its helper functions are covered. A
    notebook or a script changes with every cell, so there only the function itself is covered. Not covered
    are functions of other modules and the global variables of a notebook.

    A metric without source code, or with values that cannot be pickled, gets a new random key each time:
    its rows are never taken from the cache.
    """
    try:
        description = json.dumps(_describe(metric))
    except (OSError, TypeError, AttributeError, pickle.PicklingError):
        return uuid.uuid4().hex
    return hashlib.sha256(description.encode()).hexdigest()


def _describe(metric: object) -> list:
    """Return nested lists of strings, for JSON, that differ whenever the metric differs."""
    if isinstance(metric, functools.partial):
        return [_describe(metric.func), _describe_value((metric.args, metric.keywords))]

    # An object with a __call__ method: its class and the values it holds.
    if not inspect.isfunction(metric):
        kind = type(metric)
        source = _module_source(kind) or inspect.getsource(kind)
        return [kind.__module__, kind.__qualname__, source, _describe_value(metric)]

    # A function: the values are those of its closure and of its default arguments.
    values = [cell.cell_contents for cell in metric.__closure__ or ()]
    values += metric.__defaults__ or ()
    values += (metric.__kwdefaults__ or {}).values()
    name = [metric.__module__, metric.__qualname__]
    code = _describe_code(metric.__code__)
    return [*name, code, _module_source(metric), [_describe_value(value) for value in values]]


def _describe_code(code: CodeType) -> list:
    """Return the bytecode, the names and the constants of a function, with those of functions inside it."""
    constants = []
    for value in code.co_consts:
        # The repr of a code object contains its address, which differs in every session.
        constants.append(_describe_code(value) if isinstance(value, CodeType) else repr(value))
    return [code.co_code.hex(), code.co_names, constants]


def _describe_value(value: object) -> list | str:
    """Return the description of a function, or the hash of any other value's pickle."""
    if inspect.isfunction(value):
        return _describe(value)
    return hashlib.sha256(pickle.dumps(value)).hexdigest()


def _module_source(metric: object) -> str:
    """Return the source of the module that defines a metric; "" for a notebook or a script."""
    module = inspect.getmodule(metric)
    if module is None or module.__name__ == "__main__":
        return ""
    return inspect.getsource(module)
