"""CUDA graphs, and what stands in for them where there is no GPU."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

import torch

Made = TypeVar("Made")
Context = Callable[[], AbstractContextManager]


class Graphs:
    """Makes the graphs of one stage; they share memory, so no two may run at the same time.

    Parameters
    ----------
    device : torch.device
    arithmetic : callable () -> context manager
        `exact_float32` or `fast_float32`.
    notice : callable () -> context manager
        Entered while a graph is made, which takes seconds the first time.
    """

    def __init__(self, device: torch.device, arithmetic: Context, notice: Context = nullcontext) -> None:
        self.device, self.arithmetic, self.notice = device, arithmetic, notice
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def warm_up(self, work: Callable[[], object]) -> None:
        """Do some work once before it is captured: libraries load and kernels compile outside a graph."""
        if self.device.type != "cuda":
            return
        with self.notice(), self.arithmetic(), torch.cuda.device(self.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                work()
            torch.cuda.current_stream().wait_stream(aside)

    def capture(self, work: Callable[[], Made]) -> "Graph[Made]":
        """Return some work, done once before, as a graph."""
        with self.notice():
            return Graph(work, self.device, self.arithmetic, self._pool)


class Graph(Generic[Made]):
    """Work on fixed tensors, always the same: captured once and replayed on a GPU, called elsewhere.

    A replay launches hundreds of kernels in the time of one, which is what short steps wait for.

    Parameters
    ----------
    work : callable () -> tensors
        Reads and writes tensors that stay where they are, never waits for the device and takes no branch on
        their values. Its results are overwritten by the next call.
    device : torch.device
    arithmetic : callable () -> context manager
    pool : graph pool handle, optional
        Memory shared with other graphs.
    """

    def __init__(
        self, work: Callable[[], Made], device: torch.device, arithmetic: Context, pool=None
    ) -> None:
        self._work, self._arithmetic, self._graph = work, arithmetic, None
        if device.type == "cuda":
            self._graph = torch.cuda.CUDAGraph()
            # "thread_local": another thread may use the GPU meanwhile, a notebook's job for one.
            with (
                arithmetic(),
                torch.cuda.device(device),
                torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"),
            ):
                self._made = work()

    def __call__(self) -> Made:
        """Do the work again."""
        if self._graph is None:
            with self._arithmetic():
                return self._work()
        self._graph.replay()
        return self._made


def compiled(function: Callable, device: torch.device, dynamic: bool | None = None) -> Callable:
    """Fuse the kernels of a function on a GPU; elsewhere, and without a C compiler, it stays as it is.

    `dynamic` says that sizes will change from call to call, so that one kernel has to serve them all.
    """
    if device.type != "cuda" or not any(map(shutil.which, ("cc", "gcc", "clang"))):  # Triton wants one
        return function
    return torch.compile(function, fullgraph=True, dynamic=dynamic)
