"""The fast vocoder on the CPU, against upstream's parity file and against `HiFT`; and the layers it replaces."""

import pytest
import torch

from tests.speech.fast.common import CPU_GRAPHS, assert_near, rebuilt_hift
from workbench.errors import WorkbenchError
from workbench.speech.fast.hift import FastHiFT, _MatmulConv1d, _PolyphaseConv1d
from workbench.speech.models.hift import CausalConv1d, UpsamplingConv1d
from workbench.speech.models.hift_window import Past

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(scope="module")
def fast_hift(hift_model, hift_golden):
    noise = hift_golden.data["buf.sine_noise_f16"].float()
    return FastHiFT.consume(rebuilt_hift(hift_model), lambda n: noise[:, :n], CPU_GRAPHS)


def test_vocoder_equals_upstream(fast_hift, hift_golden):
    data = hift_golden.data
    [vocoded] = fast_hift([data["in.mel"]])
    assert_near(vocoded.f0, data["final.f0_float64"], 1e-3)
    assert_near(vocoded.source, data["final.source"], 2e-3)
    assert_near(vocoded.wav, data["final.wav"], 5e-3)


@pytest.mark.parametrize("finalize", [True, False])
def test_mels_of_any_length_are_vocoded_together(fast_hift, hift_model, hift_golden, finalize):
    mel, noise = hift_golden.data["in.mel"], hift_golden.data["buf.sine_noise_f16"].float()
    mels = [mel, mel[..., :9], mel[..., 3:33]]
    for given, found in zip(mels, fast_hift(mels, finalize), strict=True):
        expected = hift_model(given, noise, finalize)
        for name, tolerance in zip(expected._fields, (1e-9, 1e-6, 1e-3, 1e-4, 2e-5), strict=True):
            assert_near(getattr(found, name), getattr(expected, name), tolerance)


@pytest.mark.parametrize("starts", [(0, 5, 12), (5, 5)])
def test_mels_that_go_on_from_earlier_ones_are_vocoded_together(fast_hift, hift_model, hift_golden, starts):
    mel, noise = hift_golden.data["in.mel"], hift_golden.data["buf.sine_noise_f16"].float()
    f0 = hift_model(mel, noise).f0.float()
    pasts = [Past().at(start, f0, hift_model.config) for start in starts]
    found = fast_hift([mel[..., start:] for start in starts], False, None, pasts)
    for start, past, sound in zip(starts, pasts, found, strict=True):
        expected = hift_model(mel[..., start:], noise[:, start * 480 :], False, past_turns=past.turns)
        assert_near(sound.source, expected.source, 1e-6)
        assert_near(sound.wav, expected.wav, 2e-5)


def test_invalid_mels_raise_the_eager_errors(fast_hift):
    with pytest.raises(WorkbenchError, match="NaN"):
        fast_hift([torch.zeros(1, 80, 20), torch.full((1, 80, 20), torch.nan)])


@pytest.mark.parametrize(("kernel", "rate"), [(16, 8), (11, 5), (7, 3), (5, 1), (3, 4)])
def test_polyphase_convolution_equals_upsampling_convolution(kernel, rate):
    conv = UpsamplingConv1d(6, 4, kernel, rate).double()
    x = torch.randn(2, 6, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(kernel))
    assert_near(_PolyphaseConv1d(conv)(x), conv(x), 1e-12)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_convolution_by_matrix_product_equals_causal_convolution(side, padded):
    conv = CausalConv1d(6, 4, 3, side=side).double()
    x = torch.randn(2, 6, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_near(_MatmulConv1d(conv)(x, padded), conv(x, padded), 1e-12)
