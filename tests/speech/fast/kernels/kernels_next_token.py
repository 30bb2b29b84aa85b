"""The kernel that picks tokens, interpreted on the CPU, against the same steps in torch."""

import copy

import pytest
import torch

from workbench.speech.config import LMConfig, Options
from workbench.speech.fast.decode_state import DecodeState, Record, advance
from workbench.speech.fast.kernels.next_token import next_token
from workbench.speech.fast.sampling import DeviceSampler

pytestmark = pytest.mark.usefixtures("no_grad")
CPU = torch.device("cpu")
CONFIG = LMConfig(speech_token_size=40, n_special=20, hidden_size=48)
ROWS, STEPS, FEWEST, MOST = 4, 11, 3, 9


# NumPy, by which Triton interprets, warns of the NaN that the test puts in.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("fallback", "top_k", "win_size"), [("full", 25, 10), ("top_k", 25, 10), ("full", 3, 0), ("full", 999, 1)]
)
def test_tokens_and_state_equal_torchs(fallback, top_k, win_size):
    torch.manual_seed(top_k)
    shared = {"repetition_fallback": fallback, "top_k": top_k, "win_size": win_size}
    options = [Options(seed=n, top_p=(0.8, 0.6, 0.9, 0.3)[n], **shared) for n in range(ROWS)]
    sampler = DeviceSampler(options[0], CONFIG, (1, 2, 28), ROWS, STEPS, CPU)
    sampler.begin(options)
    sampler.refill([0] * ROWS, STEPS)
    state = DecodeState.zeros(ROWS, CONFIG.n_ids, torch.float32, CPU)
    state.done.zero_()
    state.min_tokens.fill_(FEWEST)
    state.max_tokens.fill_(MOST)
    ours, our_sampler = copy.deepcopy((state, sampler.state))
    embedding = torch.randn(CONFIG.n_ids, CONFIG.hidden_size)
    n_repeated = 0
    for step in range(STEPS):
        logits = 2 * torch.randn(ROWS, CONFIG.n_ids)
        logits[0, 7] += 12  # often repeated
        logits[1, 28] += 12  # a silent token, which may repeat
        logits[:, 40:] -= 20
        logits[2, 40] += 50 * (step in (1, 6))  # a stop id: too early, then in time
        logits[3, step % 4] += 2
        if step == 7:
            logits[3] = torch.nan
        for each in (state, ours):
            each.logp.copy_(logits.log_softmax(-1))
        right, found = (
            Record(torch.zeros(ROWS, dtype=torch.long), torch.zeros(ROWS, CONFIG.n_ids)) for _ in range(2)
        )
        token, used = sampler.pick(state.logp, state.n_tokens < state.min_tokens)
        n_repeated += int((used >= CONFIG.n_ids).sum())
        advance(token, used, CONFIG.speech_token_size, state, sampler.state, right)
        theirs, sampler.state = sampler.state, our_sampler
        x = next_token(embedding, CONFIG.speech_token_size, ours, sampler, found)
        sampler.state = theirs
        for name, value in (state._asdict() | right._asdict() | theirs._asdict()).items():
            mine = (ours._asdict() | found._asdict() | our_sampler._asdict())[name]
            assert torch.equal(mine.nan_to_num(), value.nan_to_num()), (step, name)
        if not logits.isnan().any():
            assert torch.equal(x, embedding[token])
    # Without a window every token counts as repeated, the stop id as well.
    assert state.done.tolist() == [True] * 4
    assert state.n_tokens[:3].tolist() == [MOST, MOST, 6 if win_size else MOST]
    assert state.has_nan.tolist() == [False, False, False, True]
    assert (n_repeated > 0) == (fallback == "full")


@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_the_likeliest_of_a_large_vocabulary_are_found_in_groups(scale):
    """With scale 0 all ids are equally likely, and the first ones come first."""
    config = LMConfig(speech_token_size=4100, n_special=20, hidden_size=16)
    torch.manual_seed(int(scale))
    options = [Options(seed=n, top_p=0.95) for n in range(2)]
    sampler = DeviceSampler(options[0], config, (), 2, 1, CPU)
    sampler.begin(options)
    sampler.refill([0, 0], 1)
    state = DecodeState.zeros(2, config.n_ids, torch.float32, CPU)
    state.done.zero_()
    state.max_tokens.fill_(9)
    state.logp.copy_((scale * torch.randn(2, config.n_ids)).log_softmax(-1))
    token, used = sampler.pick(state.logp, state.done)
    record = Record(torch.zeros(2, dtype=torch.long), torch.zeros(2, config.n_ids))
    next_token(torch.randn(config.n_ids, 16), config.speech_token_size, state, sampler, record)
    assert record.token.tolist() == token.where(token < config.speech_token_size, -1).tolist()
    assert sampler.state.next_draw.tolist() == used.tolist()
