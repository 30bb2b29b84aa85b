"""Recognise errors whose values cannot be predicted: those of rounding, and of other random numbers.

A fault that rounds, or that draws other random numbers, does not say which values a run has. It does say how
large its error is, and more than that: rounding errors in one program are similar to those in another, and
random numbers of one kind have the same distribution. An error that merely has the right size is not
explained by such a fault.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.config import RELEASED

SIZE_TOLERANCE = 0.3  # decades by which the size of a rounding error may be off: a factor of 2
# Cosine between the candidate's error and that of our model with the same rounding. Weights rounded in the
# same way give most of it, whatever the order of the sums. Errors of different origin have a cosine near 0.
MIN_COSINE = 0.3
MIN_COSINE_OF_STATISTICS = 0.8  # a few numbers point the same way by chance
# A draw may be so many times as far from the mean of our draws as these are from each other.
DRAW_TOLERANCE = 1.3
MIN_COMMON_DIRECTION = 0.75  # of the least cosine that one of our draws has with the others
DRAW_TOLERANCE_OF_STATISTICS = 2.0  # a few numbers vary more


def is_rounding(error: Tensor, expected: Tensor, min_cosine: float = MIN_COSINE) -> bool:
    """Whether an error may be the rounding error that a fault is expected to make.

    Parameters
    ----------
    error, expected : Tensor
        Of one shape: the candidate's error, and the error of our model with the fault; both against our
        model without it.
    min_cosine : float
        `MIN_COSINE_OF_STATISTICS` where the tensors hold statistics.
    """
    finite = error.isfinite() & expected.isfinite()
    error, expected = error[finite].double().flatten(), expected[finite].double().flatten()
    size, expected_size = float(error.norm()), float(expected.norm())
    if not size or not expected_size:
        return False
    if abs(math.log10(size / expected_size)) > SIZE_TOLERANCE:
        return False
    return float(error @ expected) / (size * expected_size) >= min_cosine


def is_draw(found: Tensor, without: Tensor, draws: Sequence[Tensor], allowed: float) -> bool:
    """Whether a result may be one more draw of random numbers, as `draws` are.

    The result may be as far from the mean of the draws as these are themselves. That must hold for its
    values, for their averages over time and over the other dimension, and for the sorted values: averages
    show a pattern that the single values hide, and sorted values show the distribution.

    All draws lack upstream's own random numbers, so their differences to a model that has these point partly
    in the same direction. The candidate's must do so as well.

    Parameters
    ----------
    found : Tensor
    without : Tensor
        The result of our model without the fault, with upstream's random numbers.
    draws : sequence of Tensor
        Results of one fault with different random numbers, of the same shape.
    allowed : float
        Relative L2 of `found` that rounding explains.
    """
    if any(draw.shape != found.shape or not draw.isfinite().all() for draw in draws):
        return False
    if not found.isfinite().all() or not _points_like_draws(found, without, draws):
        return False
    views_of_draws = [_views(draw) for draw in draws]
    for position, view in enumerate(_views(found)):
        others = torch.stack([views[position] for views in views_of_draws])  # (draw, n)
        mean = others.mean(0)
        count = len(others)
        # Standard deviation of one draw, and of a draw's distance to the mean of `count` others.
        spread = float((others - mean).square().sum().div(count - 1).sqrt())
        expected = spread * (1 + 1 / count) ** 0.5
        slack = allowed * float(view.norm())
        distance = float((view - mean).norm())
        if distance > DRAW_TOLERANCE * expected + slack:
            return False  # another pattern is in it
        if distance < expected / DRAW_TOLERANCE - slack and position == 0:
            return False  # nearer than any draw comes: nothing was drawn
    return True


def _points_like_draws(found: Tensor, without: Tensor, draws: Sequence[Tensor]) -> bool:
    """Whether the candidate differs from our model in the direction in which all draws do."""
    differences = torch.stack([(draw - without).double().flatten() for draw in draws])  # (draw, n)
    common = differences.mean(0)
    cosines = []
    for number, difference in enumerate(differences):
        others = torch.cat((differences[:number], differences[number + 1 :])).mean(0)
        cosines.append(F.cosine_similarity(difference, others, dim=0))
    found_cosine = F.cosine_similarity((found - without).double().flatten(), common, dim=0)
    return bool(found_cosine >= MIN_COMMON_DIRECTION * min(cosines))


def are_statistics_of_draw(found: Tensor, draws: Sequence[Tensor], allowed: float) -> bool:
    """Whether statistics (..., 6) may be those of one more draw; NaN in `found` was not recorded."""
    known = found.isfinite()
    if any(draw.shape != found.shape for draw in draws) or not known.any():
        return False
    others = torch.stack([draw[known].double() for draw in draws])  # (draw, n)
    values, mean = found[known].double(), others.mean(0)
    spread = (others - mean).square().sum(0).div(len(others) - 1).sqrt()  # (n,)
    expected = DRAW_TOLERANCE_OF_STATISTICS * float(spread.norm()) * (1 + 1 / len(others)) ** 0.5
    return float((values - mean).norm()) <= expected + allowed * float(values.norm())


def _views(x: Tensor) -> list[Tensor]:
    """Return a result as values, as averages and sorted: flat float64 tensors.

    Samples (N,) are seen frame by frame: averages and levels of the frames of a mel.
    """
    x = x.double()
    if x.ndim == 1:
        hop = RELEASED.mel.hop_length
        n_frames = len(x) // hop
        frames = x[: n_frames * hop].reshape(n_frames, hop) if n_frames else x[None]
        return [x, frames.mean(1), frames.square().mean(1).sqrt(), x.sort().values]
    return [x.flatten(), x.mean(-1).flatten(), x.mean(-2).flatten(), x.flatten().sort().values]
