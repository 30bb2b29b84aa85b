"""Fast runs on a GPU beside other work of the same process: nothing outside may free what a graph uses."""

import gc
import threading

import pytest
import torch

from workbench import Pipeline
from workbench.speech.fast import cuda_graphs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("no_grad"),
    pytest.mark.filterwarnings(
        "ignore:The CUDA Graph is empty:UserWarning"
    ),  # the compiler's own first graph
]
CUDA = torch.device("cuda")
MiB = 2**20


@pytest.fixture(scope="module", params=["exact", "fast"])
def run(request, voice, utt):
    """A function that speaks one sentence; its graphs are captured already."""
    pipe = Pipeline(voice, "cuda", progress=False)
    options = voice.options.but(compute=request.param)

    def speak():
        return pipe.synthesise(utt, seed=7, options=options).wav

    speak()
    return speak


class Layers(torch.nn.Module):
    """Somebody else's model: large products, so that cuBLAS wants its workspace."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(4)])

    def forward(self, x):
        return self.layers(x).softmax(-1)


def other_graph(model, x):
    """Capture and replay a CUDA graph as torch's documentation shows it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
    graph.replay()
    return graph, y


def test_freed_cublas_workspaces_do_not_matter(run):
    before = run()
    for _ in range(3):
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.full((64 * MiB,), float("nan"), device=CUDA)  # takes the freed memory, if there is any
        assert torch.equal(run(), before)


def test_runs_alternate_with_a_compiled_model_that_has_graphs_of_its_own(run):
    before = run()
    model = Layers().to(CUDA)
    compiled = torch.compile(model, mode="reduce-overhead")
    for rows in (4, 4, 4, 8, 8, 8):
        x = torch.randn(rows, 512, device=CUDA)
        torch.testing.assert_close(compiled(x).clone(), model(x), atol=1e-5, rtol=1e-4)
        torch.cuda.empty_cache()
        assert torch.equal(run(), before)


def test_a_first_run_after_a_compiled_model_is_the_same(run, voice, utt):
    before = run()
    model = torch.compile(Layers().to(CUDA), mode="reduce-overhead")
    x = torch.randn(4, 512, device=CUDA)
    expected = [model(x).clone() for _ in range(3)][-1]
    fresh = Pipeline(voice, "cuda", progress=False)
    options = voice.options.but(compute="exact")
    wav = fresh.synthesise(utt, seed=7, options=options).wav
    assert torch.equal(model(x), expected)
    assert torch.equal(fresh.synthesise(utt, seed=7, options=options).wav, wav)
    assert torch.equal(run(), before)


def test_graphs_of_others_and_ours_leave_each_other_alone(run):
    before = run()
    model, x = Layers().to(CUDA), torch.randn(4, 512, device=CUDA)
    graph, y = other_graph(model, x)
    expected = y.clone()
    assert torch.equal(run(), before)
    graph.replay()
    assert torch.equal(y, expected)
    assert torch.equal(run(), before)


def test_work_in_another_thread_and_stream_does_not_matter(run, voice, utt):
    before = run()
    stop, wrong = threading.Event(), []
    model, x = Layers().to(CUDA), torch.randn(256, 512, device=CUDA)

    def multiply():
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            torch.zeros(1, device=CUDA)  # cuBLAS warns if it is the first to use the GPU in a thread
            expected = model(x)
            while not stop.is_set():
                error = float((model(x) - expected).abs().max())
                if not error < 1e-4:  # TF32 is a setting of the whole process; a run may switch it on
                    wrong.append(error)
                    return

    thread = threading.Thread(target=multiply)
    thread.start()
    try:
        fresh = Pipeline(voice, "cuda", progress=False)  # captures its graphs while the other thread works
        first = fresh.synthesise(utt, seed=7, options=voice.options.but(compute="exact")).wav
        assert all(torch.equal(run(), before) for _ in range(3))
        again = fresh.synthesise(utt, seed=7, options=voice.options.but(compute="exact")).wav
    finally:
        stop.set()
        thread.join()
    assert torch.equal(first, again) and not wrong


def test_a_reset_of_the_compiler_does_not_matter(run):
    before = run()
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.equal(run(), before)


def test_memory_that_ran_out_is_survived(run):
    before = run()
    blocks = []
    with pytest.raises(torch.cuda.OutOfMemoryError):
        while True:
            blocks.append(torch.empty(1024 * MiB, device=CUDA))
    blocks.clear()
    torch.cuda.empty_cache()
    assert torch.equal(run(), before)


def test_a_dropped_pipeline_gives_its_memory_back(run, voice, utt):
    before = run()
    held = []
    for _ in range(3):
        pipe = Pipeline(voice, "cuda", progress=False)
        pipe.synthesise(utt, seed=7, options=voice.options.but(compute="fast"))
        del pipe
        gc.collect()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
    assert held[2] - held[0] <= 8 * MiB, held
    assert torch.equal(run(), before)


def test_a_capture_that_fails_leaves_the_others_as_they_are():
    graphs = cuda_graphs.CudaGraphPool(CUDA, torch.no_grad)
    x = torch.ones(4, device=CUDA)

    def waits():
        return (
            torch.zeros(1, device=CUDA) if torch.cuda.is_current_stream_capturing() and x.sum().item() else x
        )

    with pytest.raises(RuntimeError):
        graphs.capture(waits)
    torch.randn(4, device=CUDA)
    assert torch.equal(graphs.capture(lambda: x + 1)(), x + 1)
