"""Vocode the end of a mel without its beginning: how far back the vocoder sees, and what else it needs.

A stream vocodes a mel that grows. Every layer sees a bounded number of frames to the left, so new samples
need new frames and `context_frames` before them, with two exceptions: the excitation's phase is a sum over
all frames, and its noise is fixed by position. `Past` carries both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.speech.config import HiFTConfig
from workbench.speech.models.hift import F0_PAST, turns


class Past(NamedTuple):
    """What the vocoder needs to know of the frames that it is not given.

    Its window begins at `frame` of the mel. Turns are summed up to frame `frame + F0_PAST`, the first whose
    f0 can be told from the window.
    """

    frame: int = 0
    turns: Tensor | None = None  # (1, 9) float64, see `hift.turns`; None where `frame` is 0

    def at(self, frame: int, f0: Tensor, config: HiFTConfig) -> "Past":
        """Return the past of a later window, from the f0 (1, T) of this one in the type of the excitation."""
        if frame == 0:
            return self
        summed = turns(f0[:, : frame - self.frame + F0_PAST], config).sum(1, dtype=torch.float64)
        return Past(frame, summed if self.turns is None else self.turns + summed)


def context_frames(config: HiFTConfig) -> int:
    """Return how many mel frames before its own a sample depends on, phase and noise apart.

    Followed backwards through the layers is the first sample of frame 0, at index 0 of every layer; indices
    before it are negative. Look-ahead reaches to the right and does not matter here.
    """

    def reach_of_block(kernel: int, dilations: Sequence[int]) -> int:
        return sum((kernel - 1) * (dilation + 1) for dilation in dilations)  # a dilated one, a plain one

    n_fft, hop = config.istft_n_fft, config.istft_hop_len
    # A window of n_fft samples is centred on its STFT frame; the periodic Hann window begins with a zero.
    half_window = n_fft // 2 - 1
    x = -(half_window // hop)  # the first STFT frame that overlaps with the sample
    x -= 7 - 1  # conv_post
    first_spectrum = x
    stride = 1  # STFT frames per value of this stage
    for i in reversed(range(len(config.upsample_rates))):
        blocks = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        x -= max(reach_of_block(*block) for block in blocks)
        down = x - reach_of_block(
            config.source_resblock_kernel_sizes[i], config.source_resblock_dilation_sizes[i]
        )
        first_spectrum = min(first_spectrum, down * stride - (stride - 1))
        if i == len(config.upsample_rates) - 1:
            x -= 1  # the padding by reflection delays the last stage by one value
        x = (x - (config.upsample_kernel_sizes[i] - 1)) // config.upsample_rates[i]
        stride *= config.upsample_rates[i]
    first_f0 = (first_spectrum * hop - half_window) // config.hop_length
    return -min(x, first_f0 - F0_PAST)
