"""Run slow work in a thread: the newest work replaces the older, shows its progress and can be cancelled."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

PAUSE = 0.25  # seconds that a control has to rest before its work begins

Bar = Callable[[Iterator, str, str, int | None], Iterator]  # wraps a loop: steps, name, unit, total
Work = Callable[[Bar], Any]


class Cancelled(Exception):
    """The work was stopped, by a user or by newer work."""


class BackgroundTask:
    """Runs one function at a time in a thread.

    Parameters
    ----------
    on_result : callable
        Called in the thread with what the work returned.
    on_error : callable
        Called in the thread with the exception, unless the work was cancelled.
    on_progress : callable
        `(name, count, total or None)`, called at every step of every loop.
    """

    def __init__(
        self,
        on_result: Callable[[Any], None],
        on_error: Callable[[Exception], None],
        on_progress: Callable[[str, int, int | None], None],
    ) -> None:
        self._on_result = on_result
        self._on_error = on_error
        self._on_progress = on_progress
        self._stop = threading.Event()  # of the newest work
        self._running = threading.Lock()  # held by the thread whose work runs
        self._thread: threading.Thread | None = None

    def start(self, work: Work, pause: float = PAUSE) -> None:
        """Cancel what runs, and run this work once no newer has come for `pause` seconds."""
        self.cancel()
        self._stop = threading.Event()
        # No daemon: one that is still in torch when the interpreter ends takes the process down. For this one
        # the interpreter waits, and it ends at its next step.
        self._thread = threading.Thread(target=self._run, args=(work, self._stop, pause), daemon=False)
        self._thread.start()

    def cancel(self) -> None:
        """Stop at the next step of a loop; the partial result is lost."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the newest work and return whether it has ended."""
        thread = self._thread
        if thread is None:
            return True
        thread.join(seconds)
        return not thread.is_alive()

    def _run(self, work: Work, stop: threading.Event, pause: float) -> None:
        if stop.wait(pause) or _is_over(stop):
            return

        def bar(steps: Iterator, name: str, unit: str, total: int | None = None) -> Iterator:
            return self._watch(steps, name, total, stop)

        with self._running:
            try:
                result = work(bar)
            except Cancelled:
                return
            except Exception as error:  # any: the thread has no caller that could catch it
                if not _is_over(stop):
                    self._on_error(error)
            else:
                if not _is_over(stop):
                    self._on_result(result)

    def _watch(self, steps: Iterator, name: str, total: int | None, stop: threading.Event) -> Iterator:
        for count, step in enumerate(steps):
            if _is_over(stop):
                raise Cancelled
            self._on_progress(name, count + 1, total)
            yield step


def _is_over(stop: threading.Event) -> bool:
    """Whether nobody waits for the work: it was cancelled, or the program has ended."""
    return stop.is_set() or not threading.main_thread().is_alive()
