"""Slow work beside the notebook: the newest job wins, shows how far it is and can be stopped."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

PAUSE = 0.25  # seconds a control has to rest before its job begins

Bar = Callable[[Iterator, str, str, int | None], Iterator]
Work = Callable[[Bar], Any]  # given the bar that its loops go through


class Cancelled(Exception):
    """A job was stopped, by hand or by a newer one."""


class Job:
    """Runs one function after another in a thread.

    Parameters
    ----------
    done : callable
        Is given what the work returned, in the thread.
    failed : callable
        Is given the exception, unless the job was cancelled.
    progress : callable
        `(name, count, total or None)` at every step of every loop.
    """

    def __init__(
        self,
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        progress: Callable[[str, int, int | None], None],
    ) -> None:
        self._done, self._failed, self._progress = done, failed, progress
        self._stop = threading.Event()  # of the newest job
        self._turn = threading.Lock()  # one works at a time
        self._thread: threading.Thread | None = None

    def start(self, work: Work, pause: float = PAUSE) -> None:
        """Stop what runs, and run this once no newer one has come for `pause` seconds."""
        self.cancel()
        self._stop = stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work, stop, pause), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Stop at the next step of a loop; what was computed up to there is lost."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the newest job; whether it has ended."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def _run(self, work: Work, stop: threading.Event, pause: float) -> None:
        if stop.wait(pause):
            return
        with self._turn:
            try:
                result = work(lambda steps, name, unit, total=None: self._watch(steps, name, total, stop))
            except Cancelled:
                return
            except Exception as error:  # the thread has no one else to tell
                self._failed(error)
            else:
                if not stop.is_set():
                    self._done(result)

    def _watch(self, steps: Iterator, name: str, total: int | None, stop: threading.Event) -> Iterator:
        for count, step in enumerate(steps):
            if stop.is_set():
                raise Cancelled
            self._progress(name, count + 1, total)
            yield step
