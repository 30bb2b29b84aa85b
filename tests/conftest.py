"""Shared fixtures: the parity files in tests/assets and the models built from their weights.

The parity files were made by upstream's own code with small random weights. Weights are stored as
float16 whose values are exact, so they are read as float32. The models here are shared by a whole
test run: copy one (`copy.deepcopy`) before changing its precision or its weights.
"""

import json
import os
import shutil
from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import tests.profiles  # noqa: F401  so that --hypothesis-profile=quick finds it
import workbench as wb
from tests.paths import ASSETS, ROOT
from workbench.speech.config import DiTConfig, FlowConfig, HiFTConfig, LMConfig
from workbench.speech.models.dit import DiT
from workbench.speech.models.flow import Flow
from workbench.speech.models.hift import HiFT
from workbench.speech.models.lm import LM


class Golden(NamedTuple):
    """One parity file: weights under upstream's names, inputs and outputs, and its JSON."""

    weights: dict[str, torch.Tensor]
    data: dict[str, torch.Tensor]
    info: dict


@lru_cache
def load_golden(name: str) -> Golden:
    tensors = load_file(ASSETS / f"{name}.safetensors")
    weights = {k.removeprefix("weights."): v.float() for k, v in tensors.items() if k.startswith("weights.")}
    data = {k: v for k, v in tensors.items() if not k.startswith("weights.")}
    return Golden(weights, data, json.loads((ASSETS / f"{name}.json").read_text()))


def ready(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)


def tuples(value):
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value


def pytest_addoption(parser):
    parser.addoption("--fuzz-cases", type=int, default=2000, help="hostile inputs that tests/fuzz tries")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Mark each test that opens a page as `browser`, and let those of the executed book, the longest, begin."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
    items.sort(key=lambda item: "book" not in getattr(item, "fixturenames", ()))  # stable


BOOK_TESTS = ("tests/notebooks/test_notebooks.py", "tests/test_docs.py")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Run the tests of a file in one worker, so that its fixtures are made once; those of the book as well.

    The groups of pytest-xdist 3.8 (`loadgroup`) do nothing under pytest 9.2.
    """
    from xdist.scheduler import LoadFileScheduling

    class FilesTogether(LoadFileScheduling):
        def _split_scope(self, nodeid):
            path = super()._split_scope(nodeid)
            return "book" if path in BOOK_TESTS else path

    return FilesTogether(config, log)


CHROMIUM = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
CHROMIUM += " --disable-background-networking --disable-component-update --disable-sync"
CHROMIUM += " --autoplay-policy=no-user-gesture-required"


@pytest.fixture(scope="session")
def browser():
    """One browser for all tests that look at pages."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no browser: neither chromium nor google-chrome is on the PATH")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=CHROMIUM.split())
        yield chromium
        chromium.close()


@pytest.fixture(params=["light"])
def page(browser, request):
    """A page without network; a request beyond the file itself or a complaint in the console fails the test.

    Parametrise it indirectly with the colour scheme.
    """
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1000, "height": 700})
    context.set_default_timeout(10_000)
    context.set_offline(True)
    wrong = []

    def gate(route):
        url = route.request.url
        if url.startswith(("file:", "data:", "blob:")):
            return route.continue_()
        wrong.append(f"request of {url}")
        route.abort()

    context.route("**/*", gate)
    page = context.new_page()
    page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    yield page
    context.close()
    assert not wrong


@pytest.fixture(scope="session")
def voice():
    """The bundled voice. It is shared: a test that changes weights loads its own."""
    return wb.Checkpoint.load(ROOT / "data" / "voices" / "tiny")


@pytest.fixture(scope="session")
def pipe(voice):
    """A pipeline of the bundled voice. It is shared: a test that patches a model builds its own."""
    return wb.Pipeline(voice, progress=False)


@pytest.fixture(scope="session")
def utt(pipe):
    """A short utterance."""
    return pipe.prepare("Eight months to Mars.", ROOT / "data" / "prompts" / "kumo_1.flac")


@pytest.fixture(scope="session")
def recorded(pipe, utt):
    """A complete run of `utt` with seed 7, everything recorded. Tests must not change its tensors."""
    return pipe.synthesise(utt, seed=7, save=wb.EVERYTHING)


@pytest.fixture
def no_grad():
    """For test modules that ask for it: `pytestmark = pytest.mark.usefixtures("no_grad")`."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def dit_golden():
    return load_golden("dit")


@pytest.fixture(scope="session")
def flow_golden():
    return load_golden("flow")


@pytest.fixture(scope="session")
def hift_golden():
    return load_golden("hift")


@pytest.fixture(scope="session")
def lm_golden():
    return load_golden("llm")


@pytest.fixture(scope="session")
def e2e_golden():
    return load_golden("e2e")


@pytest.fixture(scope="session")
def sensitivity():
    """How far upstream's output moved under each deliberate mistake."""
    return json.loads((ASSETS / "sensitivity.json").read_text())


@pytest.fixture(scope="session")
def dit_model(dit_golden):
    return ready(DiT(DiTConfig(**dit_golden.info["config"])), dit_golden.weights)


@pytest.fixture(scope="session")
def flow_model(flow_golden, dit_golden):
    stated = flow_golden.info["config"]
    config = FlowConfig(
        vocab_size=stated["flow"]["vocab_size"],
        pre_lookahead_len=stated["flow"]["pre_lookahead_len"],
        pre_lookahead_channels=stated["pre_lookahead_layer"]["channels"],
        dit=DiTConfig(**stated["dit"]),
    )
    estimator = {f"decoder.estimator.{k}": v for k, v in dit_golden.weights.items()}
    return ready(Flow(config), flow_golden.weights | estimator)


@pytest.fixture(scope="session")
def hift_model(hift_golden):
    """The vocoder with its f0 predictor in float64, as upstream runs it."""
    stated = {k: tuples(v) for k, v in hift_golden.info["config"]["hift"].items()}
    spectrum = stated.pop("istft_params")
    width = hift_golden.info["config"]["f0_predictor"]["cond_channels"]
    config = HiFTConfig(
        **stated,
        istft_n_fft=spectrum["n_fft"],
        istft_hop_len=spectrum["hop_len"],
        f0_cond_channels=width,
    )
    model = ready(HiFT(config), hift_golden.weights)
    model.f0_predictor.double()
    return model


@pytest.fixture(scope="session")
def lm_config(lm_golden):
    llm, qwen = lm_golden.info["config"]["llm"], lm_golden.info["config"]["qwen"]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    names += ("intermediate_size", "vocab_size", "rope_theta", "rms_norm_eps")
    return LMConfig(
        speech_token_size=llm["speech_token_size"],
        mix_ratio=tuple(llm["mix_ratio"]),
        **{name: qwen[name] for name in names},
    )


@pytest.fixture(scope="session")
def lm_model(lm_golden, lm_config):
    return ready(LM(lm_config), lm_golden.weights)


@pytest.fixture
def loops(monkeypatch):
    """The interpreter of Triton 3.6 makes a loop's end of an array of one number, which NumPy 2.4 refuses."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """The sources of the book; `book.executed("00-start-here")` is a notebook after "Run all"."""
    from tests.book import Book  # its packages are not needed on a GPU machine

    return Book(tmp_path_factory.mktemp("book"))
