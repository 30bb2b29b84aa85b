"""How far back the vocoder sees, and that the end of a mel alone gives the samples of the whole."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from workbench.speech.config import HiFTConfig
from workbench.speech.models.hift import F0_PAST, HiFT
from workbench.speech.models.hift_window import Past, context_frames

SMALL = HiFTConfig(base_channels=16, f0_cond_channels=4)
SIZES = {
    "released": {},
    "another frame": {"upsample_rates": (4, 5, 3), "upsample_kernel_sizes": (8, 11, 7)},
    "shorter blocks": {"resblock_kernel_sizes": (3, 5, 7), "source_resblock_kernel_sizes": (3, 3, 5)},
    "two stages": {
        "upsample_rates": (6, 5),
        "upsample_kernel_sizes": (12, 10),
        "source_resblock_kernel_sizes": (7, 11),
        "source_resblock_dilation_sizes": ((1, 3, 5),) * 2,
    },
}


def vocoder(config):
    """One without negative weights, so that no dependence cancels out."""
    torch.manual_seed(0)
    hift = HiFT(config).double().eval().requires_grad_(False)
    for parameter in hift.parameters():
        parameter.abs_()
    return hift


def first_needed(value, of):
    """The first frame or sample of `of` (1, channels, T) on which a value depends."""
    [gradient] = torch.autograd.grad(value, of)
    return int(gradient.abs().sum(1)[0].nonzero()[0])


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_context_is_what_the_layers_see(sizes):
    config = replace(SMALL, **sizes)
    hift, frames = vocoder(config), 90
    at, hop = 80, config.hop_length
    mel = torch.rand(1, 80, frames, dtype=torch.float64, requires_grad=True)
    source = torch.rand(1, 1, frames * hop, dtype=torch.float64, requires_grad=True)
    first_stft_frame = (
        at * hop // config.istft_hop_len - (config.istft_n_fft // 2 - 1) // config.istft_hop_len
    )
    spectrum = hift.trunk(mel, hift.stft(source))[..., first_stft_frame].sum()
    f0 = hift.f0_predictor(mel)[0, at]
    assert first_needed(f0, mel) == at - F0_PAST
    [of_mel, of_source] = torch.autograd.grad(spectrum, (mel, source), retain_graph=True)
    first_mel, first_sample = (int(g.abs().sum(1)[0].nonzero()[0]) for g in (of_mel, of_source))
    assert context_frames(config) == at - min(first_mel, first_sample // hop - F0_PAST)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("finalize", [False, True])
def test_the_end_of_a_mel_gives_the_samples_of_the_whole(hift_model, hift_golden, finalize):
    c, noise = hift_model.config, hift_golden.data["buf.sine_noise_f16"].float()
    mel = torch.cat([hift_golden.data["in.mel"]] * 3, dim=-1)
    noise = torch.cat([noise] * 3, dim=1)
    whole = hift_model(mel, noise, finalize)
    first = mel.shape[-1] - 20
    window = first - context_frames(c)
    assert window > 0
    f0 = whole.f0.float()
    of_window_before = F.pad(f0[:, window - 5 + F0_PAST :], (F0_PAST, 0))  # as the vocoder returns it
    past = Past().at(window - 5, f0, c).at(window, of_window_before, c)
    end = hift_model(mel[..., window:], noise[:, window * 480 :], finalize, past_turns=past.turns)
    new, expected = end.wav[:, (first - window) * 480 :], whole.wav[:, first * 480 :]
    assert new.shape == expected.shape and (new - expected).abs().max() < 2e-5
    assert not end.f0[:, :F0_PAST].any() and (end.f0 - whole.f0[:, window:])[:, F0_PAST:].abs().max() < 1e-9
    without_phase = hift_model(mel[..., window:], noise[:, window * 480 :], finalize)
    assert (without_phase.wav[:, (first - window) * 480 :] - expected).abs().max() > 1e-3


def test_what_lies_further_back_changes_no_sample(hift_model, hift_golden):
    c, noise = hift_model.config, hift_golden.data["buf.sine_noise_f16"].float()
    mel = torch.cat([hift_golden.data["in.mel"]] * 2, dim=-1)
    noise = torch.cat([noise] * 2, dim=1)
    source = hift_model(mel, noise).source
    at = context_frames(c) + 2
    other_mel, other_source = mel.clone(), source.clone()
    other_mel[..., :2] += 1  # at + 2 frames see neither these
    other_source[..., : (2 + F0_PAST) * 480] = 0  # nor the excitation before the first f0 that is known
    before, after = (
        hift_model(m, noise, source=s).wav[:, at * 480 :]
        for m, s in ((mel, source), (other_mel, other_source))
    )
    assert torch.equal(before, after)
