"""The state of a batch between two tokens, and how a token changes it.

Shape letters: `B` rows of the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.speech.fast.sampling import SamplerState, record_pick


class DecodeState(NamedTuple):
    """The state of each row between two tokens. The tensors keep their addresses, for the CUDA graphs."""

    position: Tensor  # (B,) index of the next position in the cache
    cache_position: Tensor  # (B,) index of the position that the latest token is written to
    n_tokens: Tensor  # (B,) tokens drawn so far, without stop ids
    min_tokens: Tensor  # (B,) stop ids are masked before this count
    max_tokens: Tensor  # (B,) the row stops at this count
    done: Tensor  # (B,) bool, the row has stopped
    has_nan: Tensor  # (B,) bool, a token was drawn from log-probabilities with NaN
    logp: Tensor  # (B, n_ids) log-probabilities of the next token

    @classmethod
    def zeros(cls, rows: int, n_ids: int, dtype: torch.dtype, device: torch.device) -> "DecodeState":
        """Return the state of rows that have all stopped."""

        def integers() -> Tensor:
            return torch.zeros(rows, device=device, dtype=torch.long)

        return cls(
            position=integers(),
            cache_position=integers(),
            n_tokens=integers(),
            min_tokens=integers(),
            max_tokens=integers(),
            done=torch.ones(rows, device=device, dtype=torch.bool),
            has_nan=torch.zeros(rows, device=device, dtype=torch.bool),
            logp=torch.zeros(rows, n_ids, device=device, dtype=dtype),
        )


class Record(NamedTuple):
    """Where one token of each row goes, for the host."""

    token: Tensor  # (B,) the token, -1 where it does not count
    logp: Tensor  # (B, n_ids) the log-probabilities that it was drawn from


def advance(
    token: Tensor,
    draws_used: Tensor,
    first_stop_id: int,
    state: DecodeState,
    sampler: SamplerState,
    record: Record,
) -> None:
    """Record a token of each row and the log-probabilities it was drawn from, and move on by one position.

    Parameters
    ----------
    token, draws_used : Tensor (B,)
        Results of `DeviceSampler.pick`.
    first_stop_id : int
        This id and all above it stop a row.
    state : DecodeState
        Changed in place, except for `logp`.
    sampler : SamplerState
        Changed in place.
    record : Record
        Overwritten.
    """
    running = ~state.done  # (B,) rows that had not stopped before this token
    active = running & (token < first_stop_id)  # (B,) rows whose token counts, as it is not a stop id
    record.token.copy_(torch.where(active, token, -1))
    record.logp.copy_(state.logp)
    state.has_nan.logical_or_(running & state.logp.isnan().any(1))

    # A stopped row keeps its position: the device writes its later tokens to one place in the cache.
    state.cache_position.copy_(state.position)
    state.position.add_(active)
    state.n_tokens.add_(active)
    state.done.logical_or_(~active | (state.n_tokens >= state.max_tokens))
    # A stop id uses up random numbers too, but it does not enter the sampler's recent tokens.
    record_pick(token, draws_used * running, active, sampler)
