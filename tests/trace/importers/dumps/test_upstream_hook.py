"""The recording hook for upstream, on stand-ins with upstream's names and the bundled voice's weights."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import workbench as wb
from workbench.diagnose.compare.compare import compare
from workbench.speech.models.flow import t_span
from workbench.speech.models.hift import F0_LOOKAHEAD
from workbench.trace.importers.dumps.mapping import read_foreign

HOOK, MAPPING = "data/foreign/upstream_hook.py", "data/foreign/upstream.toml"


def record(model, folder):
    spec = importlib.util.spec_from_file_location("upstream_hook", HOOK)
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    hook.record(model, folder)


class Decoder(nn.Module):
    """Calls its parts the way upstream's ODE solver does."""

    inference_cfg_rate = 0.7

    def __init__(self, flow, noise):
        super().__init__()
        self.estimator, self.noise = flow.decoder.estimator, noise

    def forward(self, mu, spks, cond, n_timesteps, streaming=False):
        z = self.noise[..., : mu.shape[-1]]
        knots = t_span(n_timesteps, "cosine")
        return self.solve_euler(z, t_span=knots, mu=mu, mask=None, spks=spks, cond=cond, streaming=streaming)

    def solve_euler(self, x, t_span, mu, mask, spks, cond, streaming=False):
        t, dt = t_span[0], t_span[1]
        for step in range(1, len(t_span)):
            twice = torch.cat((x, x))
            pairs = [torch.cat((y, torch.zeros_like(y))) for y in (mu, spks, cond)]
            v = self.forward_estimator(twice, mask, pairs[0], t.expand(2), pairs[1], pairs[2], streaming)
            x = x + dt * ((1 + self.inference_cfg_rate) * v[:1] - self.inference_cfg_rate * v[1:])
            t = t + dt
            dt = t_span[min(step + 1, len(t_span) - 1)] - t
        return x

    def forward_estimator(self, x, mask, mu, t, spks, cond, streaming=False):
        v = self.estimator(x, mask, mu, t, spks, cond, streaming)
        x.copy_(v)  # as TensorRT does, which writes its result into its input
        return x


class Flow(nn.Module):
    def __init__(self, flow, noise):
        super().__init__()
        self.ours, self.decoder = flow, Decoder(flow, noise)

    def inference(self, token, prompt_token, prompt_feat, embedding, streaming, finalize):
        c = self.ours.condition(
            token[0], prompt_token[0], prompt_feat.transpose(1, 2), embedding[0], finalize
        )
        mel = self.decoder(c.mu, c.spks, c.cond, n_timesteps=10, streaming=streaming)
        return mel[..., c.prompt_frames :], None


class Source(nn.Module):
    def __init__(self, ours, noise):
        super().__init__()
        self.ours, self.noise = ours, noise

    def forward(self, f0):
        return self.ours(f0, self.noise).transpose(1, 2), None, None


class HiFT(nn.Module):
    def __init__(self, hift, noise):
        super().__init__()
        self.ours, self.f0_predictor, self.m_source = hift, hift.f0_predictor, Source(hift.m_source, noise)

    def inference(self, speech_feat, finalize=True):
        f0 = self.f0_predictor(speech_feat.double(), finalize)
        source = self.m_source(f0.float())[0].transpose(1, 2)
        if not finalize:
            speech_feat = speech_feat[..., :-F0_LOOKAHEAD]
        x = self.ours.trunk(speech_feat, self.ours.stft(source), finalize)
        log_magnitude, angle = x.chunk(2, dim=1)
        wav = self._istft(log_magnitude.exp(), torch.sin(angle))
        return wav.clamp(-0.99, 0.99), source

    def _istft(self, magnitude, phase):
        magnitude = magnitude.clamp(max=100.0)
        return self.ours.istft(magnitude * phase.cos(), magnitude * phase.sin())


class LM:
    """Draws the tokens of a recorded run, and then an id that ends the speech."""

    def __init__(self, trace):
        self.tokens, self.logp = trace["lm/drawn_token"].tolist(), trace["lm/logp"]
        self.speech_token_size = max(self.tokens) + 1

    def sampling_ids(self, weighted_scores, decoded_tokens, sampling, ignore_eos=True):
        weighted_scores[0] = -float("inf")  # as upstream masks an id in place
        return [*self.tokens, self.speech_token_size][len(decoded_tokens)]

    def inference(self, text, prompt_text, prompt_speech_token, embedding):
        said = []
        for logp in [*self.logp, self.logp[-1]]:
            token = self.sampling_ids(logp.clone(), said, 25, ignore_eos=False)
            if token >= self.speech_token_size:
                break
            said.append(token)
            yield token


@pytest.fixture(scope="module")
def ours(pipe):
    options = pipe.checkpoint.options.but(max_tokens=10, seed=3, n_timesteps=10)
    utt = pipe.prepare("It is late.", "data/prompts/kumo_1.flac")
    return pipe.synthesise(utt, options=options, save=wb.EVERYTHING)


@pytest.fixture
def upstream(pipe, ours):
    o = pipe.checkpoint.options
    samples = len(ours.wav)
    return SimpleNamespace(
        llm=LM(ours),
        flow=Flow(pipe.stage("flow", "float32"), pipe.noise(2000)),
        hift=HiFT(
            pipe.stage("hift", "float32", o.f0_dtype, o.source_dtype),
            pipe.checkpoint.noise.excitation(samples),
        ),
    )


@torch.no_grad()
def stream(model, trace, hop=6, lookahead=3):
    """As upstream's token2wav for chunks: the flow over all tokens so far, the vocoder over all mel so far."""
    said = model.llm.inference(
        text=trace["in/text_token"][None].int(),
        prompt_text=trace["in/prompt_text_token"][None].int(),
        prompt_speech_token=trace["in/lm_prompt_token"][None].int(),
        embedding=trace["in/spk_embedding"][None],
    )
    tokens = list(said)
    joined = None
    for offset in range(0, len(tokens), hop):
        is_last = offset + hop + lookahead >= len(tokens)
        some = tokens if is_last else tokens[: offset + hop + lookahead]
        mel, _ = model.flow.inference(
            token=torch.tensor(some)[None],
            prompt_token=trace["in/flow_prompt_token"][None],
            prompt_feat=trace["in/prompt_mel"].T[None],
            embedding=trace["in/spk_embedding"][None],
            streaming=not is_last,
            finalize=is_last,
        )
        new = mel[..., 2 * offset :]
        joined = new if joined is None else torch.cat((joined, new), dim=-1)
        model.hift.inference(speech_feat=joined, finalize=is_last)
        if is_last:
            return


@torch.no_grad()
def speak(model, trace):
    """As upstream's token2wav: everything with a batch of one and by keyword."""
    said = model.llm.inference(
        text=trace["in/text_token"][None].int(),
        prompt_text=trace["in/prompt_text_token"][None].int(),
        prompt_speech_token=trace["in/lm_prompt_token"][None].int(),
        embedding=trace["in/spk_embedding"][None],
    )
    mel, _ = model.flow.inference(
        token=torch.tensor(list(said))[None],
        prompt_token=trace["in/flow_prompt_token"][None],
        prompt_feat=trace["in/prompt_mel"].T[None],
        embedding=trace["in/spk_embedding"][None],
        streaming=False,
        finalize=True,
    )
    return model.hift.inference(speech_feat=mel, finalize=True)[0]


@pytest.mark.slow
def test_its_dump_equals_our_run(tmp_path, pipe, ours, upstream):
    silent = speak(upstream, ours)
    record(upstream, tmp_path / "dump")
    wav = speak(upstream, ours)
    assert torch.equal(wav, silent)  # listening changes nothing
    trace = read_foreign(tmp_path / "dump" / "0.safetensors", MAPPING, text=ours.attrs["text"])
    assert trace.attrs["unmapped"] == [] and trace.prompt_frames == ours.prompt_frames
    assert set(ours) - set(trace) == {"lm/entropy"}
    found = compare(ours, trace, pipe)
    rows = found.rows[found.rows["field"] != "lm/entropy"]
    assert len(rows[~rows["field"].str.startswith(("lm/drawn", "lm/logp"))]) == 17 + 2 * 11 + 3 * 10 and set(
        rows["verdict"]
    ) <= {"MATCH", "ROUNDING"}
    assert found.causes == [] and found.input_differences == []
    assert list(found.unchecked) == ["lm/drawn_token"]  # its random numbers are upstream's own
    assert torch.equal(pipe.replay(trace, "flow", pipe.checkpoint.options).wav, ours.wav)


@pytest.mark.slow
def test_a_fault_in_the_dump_is_found(tmp_path, pipe, ours, upstream):
    record(upstream, tmp_path)
    upstream.flow.decoder.inference_cfg_rate = 0.5  # beside the stated option
    speak(upstream, ours)
    trace = read_foreign(tmp_path / "0.safetensors", MAPPING)
    assert compare(ours, trace, pipe).causes[0].name == "flow/velocity[0]"


@pytest.mark.slow
def test_each_sentence_gets_a_file_of_its_own(tmp_path, ours, upstream):
    record(upstream, tmp_path)
    speak(upstream, ours)
    speak(upstream, ours)
    a, b = (load_file(tmp_path / f"{i}.safetensors") for i in (0, 1))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert sum(name.startswith("x") for name in a) == 11


@pytest.mark.slow
def test_each_chunk_of_a_stream_is_a_whole_pass(tmp_path, pipe, ours, upstream):
    record(upstream, tmp_path)
    stream(upstream, ours)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == ["0.safetensors", "1-vocoder.safetensors", "1.safetensors"]
    first, last, sound = (wb.open(tmp_path / name) for name in (names[0], names[2], names[1]))
    assert [trace.attrs["mapping"] for trace in (first, last, sound)] == ["upstream.toml"] * 3
    for trace in (first, last, sound):
        assert torch.equal(trace["in/text_token"], ours["in/text_token"]) and trace.attrs["unmapped"] == []
    assert [trace.attrs["streaming"] for trace in (first, last, sound)] == [1, 0, 1]
    for trace in (first, last):
        assert len(trace["flow/x"]) == 11 and len(trace["flow/velocity"]) == 10
        assert torch.equal(trace.select("flow/x", knot=-1, region="target"), trace["flow/mel"])
    assert "flow/x" not in sound and "flow/mel" in sound and "hift/wav" in sound and "hift/wav" not in last
    # The last pass is the offline run; the pieces of the others are in the sound.
    assert torch.equal(last["lm/speech_token"], ours["lm/speech_token"]) and "lm/logp" in last
    assert torch.allclose(last["flow/mel"], ours["flow/mel"], atol=1e-4)
    assert torch.equal(sound["flow/mel"][:, :12], first["flow/mel"][:, :12])
    found = compare(ours, last, pipe)
    assert found.causes == [] and set(found.rows["verdict"]) <= {"MATCH", "ROUNDING", "MISSING"}


@pytest.mark.slow
def test_no_fault_is_named_from_a_chunk(tmp_path, pipe, ours, upstream):
    record(upstream, tmp_path)
    stream(upstream, ours)
    chunk = wb.open(tmp_path / "0.safetensors")
    found = compare(ours, chunk, pipe)
    assert found.causes == [] and "mask and look-ahead of its own" in found.unchecked["everything"]
    assert "mask and look-ahead of its own" in str(wb.find_suspects(ours, chunk, pipe))


@pytest.mark.slow
def test_a_conversion_has_no_inputs_of_the_sentence_before(tmp_path, ours, upstream):
    record(upstream, tmp_path)
    speak(upstream, ours)
    mel, _ = upstream.flow.inference(
        token=ours["lm/speech_token"][None],
        prompt_token=ours["in/flow_prompt_token"][None],
        prompt_feat=ours["in/prompt_mel"].T[None],
        embedding=ours["in/spk_embedding"][None],
        streaming=False,
        finalize=True,
    )
    upstream.hift.inference(speech_feat=mel, finalize=True)
    converted = wb.open(tmp_path / "1.safetensors")
    assert (
        "in/text_token" not in converted
        and "flow/x" in converted
        and "in/text_token" in wb.open(tmp_path / "0.safetensors")
    )
