"""Repetition-aware sampling of speech tokens, and its guards.

Facts: upstream `cosyvoice/utils/common.py` (nucleus and repetition-aware sampling) and
`cli/model.py` (silent tokens). Three guards are ours, and off by default: `mask_stop_ids`,
`silent_tokens_repeat` and `repetition_fallback`. Servers have a temperature, a repetition penalty and a
nucleus within the `top_k` likeliest ids (TensorRT-LLM `kernels/samplingTopKKernels.cu`).
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.config import LMConfig, Options


def nucleus(scores: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the candidates of nucleus sampling.

    Parameters
    ----------
    scores : Tensor (n,)
        Log-probabilities or logits; -inf masks an id.
    top_p : float
        Ids are taken, likeliest first, while those before them sum to less than this.
    top_k : int
        At most this many are taken; at least one is.

    Returns
    -------
    ids : Tensor (c,)
        Likeliest first; equally likely ones in the order of their ids.
    probs : Tensor (c,)
        Not renormalised.
    """
    probs, ids = scores.softmax(dim=0).sort(descending=True, stable=True)
    # numpy adds float32 numbers one by one, as upstream's loop does. torch.cumsum rounds differently, which
    # changes the result where the sum is next to top_p.
    sum_before = np.concatenate((np.zeros(1, np.float32), np.cumsum(probs.numpy())[:-1]))
    within_top_p = int((sum_before < np.float32(top_p)).sum())
    n_candidates = max(1, min(top_k, within_top_p))
    return ids[:n_candidates], probs[:n_candidates]


def nucleus_in_top_k(scores: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the candidates as TensorRT-LLM draws them: `top_p` is a share of the `top_k` likeliest ids.

    It draws a number below `top_p` times the sum of the `top_k` probabilities, and takes the id in which
    the running sum passes it. So the last candidate has only the part of its probability below that limit.

    Parameters
    ----------
    scores, top_p, top_k
        As in `nucleus`.

    Returns
    -------
    ids, probs : Tensor (c,)
        As in `nucleus`; the last probability is cut at the limit.
    """
    probs, ids = scores.softmax(dim=0).sort(descending=True, stable=True)
    probs, ids = probs[:top_k], ids[:top_k]
    below_limit = top_p * probs.sum() - (probs.cumsum(0) - probs)  # (k,) room for each probability
    cut = torch.minimum(probs, below_limit.clamp(min=0))
    n_candidates = max(1, int((cut > 0).sum()))
    return ids[:n_candidates], cut[:n_candidates]


def draw(probs: Tensor, generator: torch.Generator) -> int:
    """Draw an index with probability proportional to `probs`.

    The exponential race (`argmax(p / q)`, `q ~ Exp(1)`) is what torch.multinomial does on a CPU, so
    a seed gives the same tokens as upstream's there, and the draws can be named and exported.
    """
    q = torch.empty(probs.shape, dtype=probs.dtype).exponential_(1, generator=generator)
    return int((probs / q).argmax())


class Sampler:
    """Pick the next speech token; holds the random generator of one run.

    Parameters
    ----------
    options : Options
        top_p, top_k, win_size, tau_r, seed and the guards.
    config : LMConfig
        Which ids stop.
    silent_tokens : iterable of int
        Ids that sound like silence or breath.
    prompt_token : sequence of int
        Speech tokens of the prompt, to which the repetition penalty applies too.
    """

    def __init__(
        self,
        options: Options,
        config: LMConfig,
        silent_tokens: Iterable[int] = (),
        prompt_token: Sequence[int] = (),
    ) -> None:
        self.options = options
        self.config = config
        self.silent = frozenset(silent_tokens)
        self.prompt = frozenset(prompt_token)
        self.generator = torch.Generator().manual_seed(options.seed)

    def __call__(self, scores: Tensor, history: Sequence[int], too_early: bool = False) -> int:
        """Pick one id.

        Parameters
        ----------
        scores : Tensor (n_ids,)
            Log-probabilities, or logits where there is a repetition penalty; not modified.
        history : sequence of int
            Tokens generated so far, without the prompt's.
        too_early : bool
            Whether the speech is too short, for this text, to end already.

        Returns
        -------
        int
            The id; `speech_token_size` and all above it mean stop.

        Raises
        ------
        WorkbenchError
            When scores are NaN.
        """
        scores = scores.float().cpu().clone()
        if bool(scores.isnan().any()):
            raise WorkbenchError(
                f"the LM's log-probabilities are NaN at token {len(history)}; float16 may have overflowed. "
                "Try lm_dtype='bfloat16' or 'float32'"
            )
        if too_early:
            self._mask_stops(scores)
        if self.options.repetition_penalty != 1.0:
            self._penalise_repetition(scores, history)
        if self.options.token_temperature != 1.0:
            scores /= self.options.token_temperature
        return self.repetition_aware(scores, history)

    def repetition_aware(self, scores: Tensor, history: Sequence[int]) -> int:
        """Draw from the nucleus. If the pick repeats a recent token, mask it, in place, and draw again."""
        o = self.options
        candidates = nucleus if o.top_p_of == "all" else nucleus_in_top_k
        ids, probs = candidates(scores, o.top_p, o.top_k)
        pick = int(ids[draw(probs, self.generator)])
        recent = history[-o.win_size :] if o.win_size else ()
        if pick in self.silent and not o.silent_tokens_repeat:
            return pick
        if sum(token == pick for token in recent) < o.win_size * o.tau_r:
            return pick
        scores[pick] = -torch.inf
        if o.repetition_fallback == "top_k":
            ids, probs = nucleus(scores, 1.0, o.top_k)
            return int(ids[draw(probs, self.generator)])
        return draw(scores.softmax(dim=0), self.generator)

    def _penalise_repetition(self, logits: Tensor, history: Sequence[int]) -> None:
        """Make tokens less likely that the prompt has or that were drawn before, as servers do."""
        seen = torch.tensor(sorted(self.prompt.union(history)), dtype=torch.long)
        penalty = self.options.repetition_penalty
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)

    def _mask_stops(self, scores: Tensor) -> None:
        size = self.config.speech_token_size
        if self.options.mask_stop_ids:
            scores[size:] = -torch.inf
        else:  # upstream masks sos alone, which is never drawn, and not eos: speech may end early
            scores[size] = -torch.inf


def shorten_silences(tokens: Iterable[int], silent: Iterable[int], max_run: int | None) -> Iterator[int]:
    """Yield the tokens, but of silent ones in a row only the first `max_run`; None keeps all.

    Upstream does this between LM and flow, with `max_run` 5. The LM's own history keeps all tokens.
    """
    silent = frozenset(silent)
    silent_in_a_row = 0
    for token in tokens:
        silent_in_a_row = silent_in_a_row + 1 if token in silent else 0
        if max_run is None or silent_in_a_row <= max_run:
            yield token
