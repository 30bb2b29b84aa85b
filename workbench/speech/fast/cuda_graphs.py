"""CUDA graphs, and what stands in for them where there is no GPU."""

import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from threading import RLock
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Made = TypeVar("Made")
Context = Callable[[], AbstractContextManager]

# cuDNN's attention, which torch tries first in half precision, plans anew for every length: 30 ms each.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
MOST_COMPILED = 64  # versions of one function, by sizes, types and arithmetic


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

    # torch captures one graph at a time in a process, and the arithmetic is a setting of the whole process.
    _one_at_a_time: ClassVar[RLock] = RLock()

    def __init__(self, device: torch.device, arithmetic: Context, notice: Context = nullcontext) -> None:
        self.device, self.arithmetic, self.notice = device, arithmetic, notice
        if device.type == "cuda":
            # One stream for all: cuBLAS keeps a workspace for every stream that it meets.
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()
            # The pool is gone with the last graph in it, and none can be made in it any more: this one stays.
            self._anchor = self.capture(lambda: torch.zeros(1, device=device))

    @contextmanager
    def computing(self, arithmetic: Context | None = None) -> Iterator[None]:
        """Compute as the stage does, in another arithmetic where one is given."""
        if self.device.type != "cuda":
            yield
            return
        with self._one_at_a_time, (arithmetic or self.arithmetic)(), sdpa_kernel(ATTENTION):
            yield

    def capture(self, work: Callable[[], Made], arithmetic: Context | None = None) -> "Graph[Made]":
        """Do some work once, so that libraries load and kernels compile, and make a graph of it.

        Parameters
        ----------
        work : callable () -> tensors
            Reads and writes tensors that stay where they are, never waits for the device and takes no branch
            on their values. Its results are overwritten by the next call.
        arithmetic : callable () -> context manager, optional
            Another one than the stage's.
        """
        if self.device.type != "cuda":
            return Graph(work)
        from torch._dynamo import config  # seconds to import, for GPUs alone

        stream = self._stream
        with (
            self.notice(),
            self.computing(arithmetic),
            torch.cuda.device(self.device),
            # Sizes that need not change stay constants in the kernels, also after a voice of other sizes.
            config.patch(recompile_limit=MOST_COMPILED, automatic_dynamic_shapes=False),
            _no_collection(),
        ):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                work()
            torch.cuda.current_stream().wait_stream(stream)
            captured = torch.cuda.CUDAGraph()
            # "thread_local": another thread may use the GPU meanwhile, a notebook's job for one.
            mode = {"pool": self._pool, "stream": stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(captured, **mode):
                made = work()
        return Graph(_replayed(captured, made))


class Graph(Generic[Made]):
    """Work on fixed tensors, always the same: captured once and replayed on a GPU, called elsewhere.

    A replay launches hundreds of kernels in the time of one, which is what short steps wait for.
    """

    def __init__(self, call: Callable[[], Made]) -> None:
        self._call = call

    def __call__(self) -> Made:
        """Do the work again."""
        return self._call()


def _replayed(captured: "torch.cuda.CUDAGraph", made: Made) -> Callable[[], Made]:
    """Hold the graph and its results alone: with the work, tensors would outlive those who dropped them."""

    def call() -> Made:
        captured.replay()
        return made

    return call


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from freeing another graph in the middle of a capture, which fails then."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def side_by_side(device: torch.device, *calls: Callable[[], object]) -> None:
    """Call what compiles kernels, each call in a thread: Triton takes seconds, outside of Python's lock."""

    def on_device(call: Callable[[], object]) -> None:
        with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            call()

    with ThreadPoolExecutor() as pool:
        list(pool.map(on_device, calls))


class OnItsWay:
    """Numbers that the host will want to know, while the device goes on with what it is asked next."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if numbers.is_cuda else None
        if self._event is not None:
            self._event.record()

    def tolist(self) -> list:
        """Wait for them, and for nothing that was asked later."""
        if self._event is not None:
            self._event.synchronize()
        return self._numbers.tolist()


def sent(numbers: Tensor | Sequence, like: Tensor) -> Tensor:
    """Give numbers of the host the device and type of another tensor, without waiting for the device."""
    numbers = torch.as_tensor(numbers, dtype=like.dtype)
    return numbers.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else numbers


def compiles(device: torch.device) -> bool:
    """Whether kernels can be made: that takes a GPU, Triton, and for Triton a C compiler."""
    return (
        device.type == "cuda"
        and find_spec("triton") is not None
        and any(map(shutil.which, ("cc", "gcc", "clang")))
    )


def has_tf32(device: torch.device) -> bool:
    """Whether kernels can be made for tensor cores that take float32, cut to TF32: from the A100 on."""
    return compiles(device) and torch.cuda.get_device_capability(device) >= (8, 0)


def compiled(function: Callable, device: torch.device, changing: Literal["rows", "all"]) -> Callable:
    """Fuse the kernels of a function on a GPU; elsewhere, and without a C compiler, it stays as it is.

    Parameters
    ----------
    function : callable
        Called inside of what `Graphs.capture` is given.
    device : torch.device
    changing : {"rows", "all"}
        Which sizes one version of it serves: any number of rows, the first dimension of its first argument
        and of all that have as many, but one row apart; or any sizes.
    """
    if not compiles(device):
        return function
    from torch._dynamo import maybe_mark_dynamic

    if changing == "all":
        return torch.compile(function, fullgraph=True, dynamic=True)
    fused = torch.compile(function, fullgraph=True)

    def call(*args, **kwargs):
        for x in args:
            if isinstance(x, Tensor) and x.ndim and len(x) == len(args[0]):
                maybe_mark_dynamic(x, 0)
        return fused(*args, **kwargs)

    return call
