"""A metric's key changes with its code and with the values that it holds."""

from functools import partial

from workbench.diagnose.experiments.metric_key import metric_key
from workbench.diagnose.experiments.metrics import seconds, sound_db


def test_metric_key_depends_on_code_and_values():
    def made(n, k=1):
        return lambda trace, reference: n * k

    class Scaled:
        def __call__(self, trace, reference):
            return 1.0

    written = {n: compile(f"def f(trace, reference): return {n}", "cell", "exec") for n in (1, 2)}
    cells = [{"__name__": "__main__"} for _ in written]
    for code, cell in zip(written.values(), cells, strict=True):
        exec(code, cell)
    keys = [made(1), made(2), made(1, 2), made(made(1)), made(made(2)), partial(made, 1), partial(made, 2)]
    keys += [seconds, sound_db, lambda t, r: 1, lambda t, r: 2, *(cell["f"] for cell in cells)]
    assert len({metric_key(m) for m in keys}) == len(keys)
    assert [metric_key(m) for m in keys] == [metric_key(m) for m in keys]
    assert metric_key(made(1)) == metric_key(made(1))
    assert metric_key(Scaled()) != metric_key(Scaled())  # cannot be pickled
