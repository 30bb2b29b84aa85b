"""CUDA graphs, compiled functions and transfers that do not wait; on a CPU, plain calls in their place.

A short step of a model launches hundreds of kernels, and launching them takes the host longer than the GPU
needs to run them. A CUDA graph records the launches once; replaying it costs about one launch.
"""

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

from workbench.speech.fast.capability import MIN_AMPERE

Result = TypeVar("Result")
MakeContext = Callable[[], AbstractContextManager]

# Attention kernels that torch may choose. cuDNN's is left out: torch would try it first in half precision,
# and it plans anew for every sequence length, 30 ms each.
ATTENTION_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Compiled versions that torch keeps of one function, where its default is 8. It makes one for each set of
# sizes, dtypes and TF32 settings.
MAX_COMPILED_VERSIONS = 64


class CudaGraphPool:
    """The CUDA graphs of one stage. They share memory, so no two of them may run at the same time.

    Parameters
    ----------
    device : torch.device
        On a CPU nothing is captured: each graph calls its function.
    arithmetic : callable () -> context manager
        `exact_float32` or `fast_float32`: how float32 products are computed in the graphs.
    on_compile : callable () -> context manager
        Entered while a graph is made, which takes seconds the first time; for a progress bar.
    """

    # torch captures one graph at a time in a process, and the arithmetic is a setting of the whole process.
    _process_lock: ClassVar[RLock] = RLock()

    def __init__(
        self, device: torch.device, arithmetic: MakeContext, on_compile: MakeContext = nullcontext
    ) -> None:
        self.device, self.arithmetic, self.on_compile = device, arithmetic, on_compile
        if device.type == "cuda":
            # One stream for all graphs: streams are few in a process, and captures take turns anyway.
            self._stream = torch.cuda.Stream(device)
            self._memory_pool: tuple[int, int] | None = None
            self._dummies: list[CudaGraph[Tensor]] = []

    @contextmanager
    def compute_mode(self, arithmetic: MakeContext | None = None) -> Iterator[None]:
        """Compute with the pool's arithmetic and attention kernels, or with another `arithmetic`."""
        if self.device.type != "cuda":
            yield
            return
        with self._process_lock, (arithmetic or self.arithmetic)(), sdpa_kernel(ATTENTION_BACKENDS):
            yield

    def capture(
        self, function: Callable[[], Result], arithmetic: MakeContext | None = None
    ) -> "CudaGraph[Result]":
        """Call a function once, so that libraries load and kernels compile, then record it as a graph.

        Parameters
        ----------
        function : callable () -> tensors
            Reads and writes tensors at fixed addresses, never waits for the device and takes no branch that
            depends on their values. The next replay overwrites its results.
        arithmetic : callable () -> context manager, optional
            Used in place of the pool's own.

        Returns
        -------
        CudaGraph
        """
        if self.device.type != "cuda":
            return CudaGraph(function)
        if self._memory_pool is None:
            self._begin_pool()
        from torch._dynamo import config  # takes seconds to import and is needed on a GPU alone

        with (
            self.on_compile(),
            self.compute_mode(arithmetic),
            torch.cuda.device(self.device),
            # Without automatic dynamic shapes, sizes that never change stay constants in the compiled
            # kernels, even after a second voice with other sizes was loaded.
            config.patch(recompile_limit=MAX_COMPILED_VERSIONS, automatic_dynamic_shapes=False),
            _garbage_collector_off(),
        ):
            # The warm-up call runs on the capture stream, as CUDA asks, in order with the current stream.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function()
            torch.cuda.current_stream().wait_stream(self._stream)

            graph = torch.cuda.CUDAGraph()
            with (
                self._dropping_pool_on_error(),
                _cublas_workspaces_of_its_own(),
                # "thread_local" lets other threads use the GPU during the capture, such as a notebook's
                # background job.
                torch.cuda.graph(
                    graph, pool=self._memory_pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                result = function()
        return CudaGraph(_replay(graph, result))

    def _begin_pool(self) -> None:
        self._memory_pool = torch.cuda.graph_pool_handle()
        # CUDA frees a memory pool together with the last graph in it, and no graph can be added after that.
        # This dummy graph keeps the pool alive.
        self._dummies.append(self.capture(lambda: torch.zeros(1, device=self.device)))

    @contextmanager
    def _dropping_pool_on_error(self) -> Iterator[None]:
        """End the pool's recording if a capture fails, as torch does not; the next capture begins a pool."""
        try:
            yield
        except BaseException:
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._memory_pool)
            self._memory_pool = None
            # torch's random generator believes that the capture goes on, and refuses to draw outside of it.
            # A capture that succeeds puts that right.
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream):
                torch.zeros(1, device=self.device)
            raise


class CudaGraph(Generic[Result]):
    """A function of fixed tensors: recorded once and replayed on a GPU, called on a CPU."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call

    def __call__(self) -> Result:
        """Run the function again; its results overwrite those of the call before."""
        return self._call()


def _replay(graph: "torch.cuda.CUDAGraph", result: Result) -> Callable[[], Result]:
    """Return a function that replays a graph.

    The captured function is not kept: its closure would keep tensors alive that their owner has dropped.
    """

    def call() -> Result:
        graph.replay()
        return result

    return call


@contextmanager
def _cublas_workspaces_of_its_own() -> Iterator[None]:
    """Have cuBLAS allocate its workspaces during a capture, and drop them after it.

    torch keeps a workspace for every stream that multiplies, and frees all of them when anybody asks, as
    `torch.compile(mode="reduce-overhead")` does. A graph that recorded the address of such a workspace would
    then write into freed memory. A workspace that is allocated during the capture lies in the graph's own
    memory pool, where it stays as long as the graph, whoever frees what.
    """
    torch._C._cuda_clearCublasWorkspaces()  # torch's documentation names this function; it has no public one
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    """Keep Python from freeing another graph during a capture, which would make the capture fail."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def compile_in_parallel(device: torch.device, *calls: Callable[[], object]) -> None:
    """Make calls that compile kernels, each in its own thread.

    Triton compiles a kernel for seconds and releases Python's lock meanwhile.
    """

    def call_on_device(call: Callable[[], object]) -> None:
        # Both settings belong to a thread, so each thread enters them again.
        with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            call()

    with ThreadPoolExecutor() as pool:
        list(pool.map(call_on_device, calls))  # `list` raises what a call raised


class AsyncCopy:
    """A copy of a tensor to the host that does not wait for the device.

    Parameters
    ----------
    source : Tensor
        On any device. It may be overwritten by work queued later.
    """

    def __init__(self, source: Tensor) -> None:
        self._copy = source.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if source.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def tolist(self) -> list:
        """Wait for the copy, not for work that was queued after it, and return its values."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._copy.tolist()


def to_device_async(values: Tensor | Sequence, like: Tensor) -> Tensor:
    """Copy host values to the device and dtype of `like` without waiting for the device."""
    values = torch.as_tensor(values, dtype=like.dtype)
    if not like.is_cuda:
        return values
    return values.pin_memory().to(like.device, non_blocking=True)  # only a copy from pinned memory is async


def can_compile(device: torch.device) -> bool:
    """Return whether kernels can be compiled: that takes a GPU, Triton, and a C compiler for Triton."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    return any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang"))


def can_compile_tf32(device: torch.device) -> bool:
    """Return whether kernels can be compiled for tensor cores that read float32 as TF32."""
    return can_compile(device) and torch.cuda.get_device_capability(device) >= MIN_AMPERE


def compiled(function: Callable, device: torch.device, dynamic: Literal["rows", "all"]) -> Callable:
    """Compile a function on a GPU, which fuses its kernels; return it unchanged where nothing can compile.

    Parameters
    ----------
    function : callable
        Called inside of functions that `CudaGraphPool.capture` records.
    device : torch.device
    dynamic : {"rows", "all"}
        Sizes for which one compiled version serves. "rows": any number of rows, which is the first dimension
        of the first argument and of every tensor with the same length; a single row gets a version of its
        own. "all": any sizes.
    """
    if not can_compile(device):
        return function
    if dynamic == "all":
        return torch.compile(function, fullgraph=True, dynamic=True)
    from torch._dynamo import maybe_mark_dynamic

    fused = torch.compile(function, fullgraph=True)

    def call(*args, **kwargs):
        rows = len(args[0])
        for x in _tensors_in(args):
            if x.ndim and len(x) == rows:
                maybe_mark_dynamic(x, 0)
        return fused(*args, **kwargs)

    return call


def _tensors_in(args: tuple) -> Iterator[Tensor]:
    """Yield the tensors among arguments, also those inside of named tuples."""
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, tuple):
            yield from _tensors_in(arg)
