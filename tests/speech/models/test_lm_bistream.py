"""The LM with text that arrives as a stream, against upstream's parity file."""

import pytest
import torch

from tests.speech.models.common import forced, tokens_of
from workbench.errors import WorkbenchError
from workbench.speech.models.lm_bistream import steps_bistream

pytestmark = pytest.mark.usefixtures("no_grad")

ATOL = 1e-4


def close(found, golden, atol=ATOL):
    torch.testing.assert_close(found, golden, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def end_of_prompt(lm_golden):
    return lm_golden.info["config"]["eop_row"]


def bistream_sampler(info, scores=None, calls=None):
    """Likeliest speech token sixty times, then the end."""
    count = 0

    def sample(logp, history, too_early):
        nonlocal count
        count += 1
        if scores is not None:
            scores.append(logp.index_fill(0, torch.tensor([info["sos"]]), -torch.inf) if too_early else logp)
        if calls is not None:
            calls.append((list(history), too_early))
        return int(logp[: info["sos"]].argmax()) if count <= 60 else info["eos"]

    return sample


CHUNKS = {
    "one by one": 1,
    "two by two": 2,
    "by three": 3,
    "by four": 4,
    "by five": 5,
}


@pytest.mark.parametrize("size", CHUNKS.values(), ids=CHUNKS)
def test_streamed_text_gives_upstreams_tokens(
    lm_model, lm_golden, text, prompt_text, prompt_speech, end_of_prompt, size
):
    stated, scores, calls = lm_golden.info["results"]["bistream"], [], []
    sample = bistream_sampler(lm_golden.info["config"], scores, calls)
    steps = list(
        steps_bistream(lm_model, iter(text.split(size)), prompt_text, prompt_speech, sample, end_of_prompt)
    )
    assert tokens_of(steps) == lm_golden.data["bistream.tokens"].tolist() == stated["tokens"]
    assert len(scores) == stated["sampler_calls"]
    close(torch.stack(scores[:12]), lm_golden.data["bistream.scores_first12"])
    sos = lm_model.config.sos  # upstream's scores are stored after its masking, ours before
    found, golden = (
        torch.stack([s.logp for s in steps[:12]]),
        lm_golden.data["bistream.scores_first12"].clone(),
    )
    assert (golden[:, sos] == -torch.inf).all() and found.isfinite().all()
    golden[:, sos] = found[:, sos]
    close(found, golden)
    fill = lm_model.config.fill
    history = calls[-1][0]
    assert [t for t in history if t != fill] == stated["tokens"]  # fills count for repetition, unheard
    fills = [i for i, t in enumerate(history) if t == fill]
    # The prompt's 7 tokens leave 8 places of the first 15; then 15 tokens and a fill in turns.
    assert fills and fills == [8 + 16 * i for i in range(len(fills))]
    assert all(early for past, early in calls if len(past) <= fills[-1])
    assert not any(early for past, early in calls if len(past) > fills[-1])


def test_nothing_is_decoded_before_it_is_asked_for(
    lm_model, lm_golden, text, prompt_text, prompt_speech, end_of_prompt
):
    given = []

    def arriving():
        for chunk in text.split(1):
            given.append(chunk)
            yield chunk

    sample = bistream_sampler(lm_golden.info["config"])
    steps = steps_bistream(lm_model, arriving(), prompt_text, prompt_speech, sample, end_of_prompt)
    assert not given  # nothing runs before it is asked for
    assert next(steps).token == lm_golden.info["results"]["bistream"]["tokens"][0]
    assert len(given) < len(text)


def test_prompt_without_end_of_prompt_raises(lm_model, text, prompt_speech):
    with pytest.raises(WorkbenchError, match="endofprompt"):
        next(steps_bistream(lm_model, [text], text[:3], prompt_speech, None, 511))


@pytest.mark.parametrize("token", [729, 730, 731, 900])
def test_drawn_reserved_ids_raise(lm_model, text, prompt_text, prompt_speech, end_of_prompt, token):
    chunks = text.split(1)
    with pytest.raises(WorkbenchError, match=f"reserved id {token}"):
        list(
            steps_bistream(lm_model, chunks, prompt_text, prompt_speech, forced([token], 730), end_of_prompt)
        )


def test_invalid_ids_of_streamed_text_raise(lm_model, prompt_text, prompt_speech):
    def run(chunk, speech):
        return list(steps_bistream(lm_model, [chunk], prompt_text, speech, forced([1], 730), 511))

    with pytest.raises(WorkbenchError, match="text tokens"):
        run(torch.tensor([600]), prompt_speech)
    with pytest.raises(WorkbenchError, match="prompt speech tokens"):
        run(torch.tensor([3]), torch.tensor([729]))


def test_the_number_of_ids_is_limited(lm_model, lm_golden, text, prompt_text, prompt_speech, end_of_prompt):
    def sample(logp, history, too_early):
        return 5  # never the end

    inputs = (prompt_text, prompt_speech, sample, end_of_prompt)
    ratio = lm_model.config.max_token_text_ratio
    assert len(list(steps_bistream(lm_model, text.split(1), *inputs))) == int(ratio * len(text))
    for most in (1, 8, 9, 30):
        assert len(list(steps_bistream(lm_model, text.split(1), *inputs, max_tokens=most))) == most


def test_what_the_lm_thinks_of_a_forced_fill_is_told(
    lm_model, lm_golden, text, prompt_text, prompt_speech, end_of_prompt
):
    told = []
    sample = bistream_sampler(lm_golden.info["config"])
    inputs = (text.split(1), prompt_text, prompt_speech, sample, end_of_prompt)
    steps = list(steps_bistream(lm_model, *inputs, on_fill=told.append))
    n_fills = (steps[-1].index + 1) - len(steps)  # indices count fills
    assert len(told) == n_fills > 0 and all(logp < 0 for logp in told)
