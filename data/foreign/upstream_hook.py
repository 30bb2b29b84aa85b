"""Record a run of upstream CosyVoice3: one safetensors file per sentence, or per pass when streaming.

This file needs torch and safetensors, and nothing of the workbench. Copy it beside your script:

    from upstream_hook import record

    cosyvoice = AutoModel(model_dir="pretrained_models/Fun-CosyVoice3-0.5B")
    record(cosyvoice.model, "dump")  # before the first sentence
    for out in cosyvoice.inference_zero_shot(text, prompt_text, prompt_wav):
        ...

Then read a file: `wb.open("dump/0.safetensors")`. The names in the file are those of upstream's arguments;
the tensors keep their precision.

A stream renders each chunk by a pass of the flow over all tokens so far. Its file is that pass, with the
inputs of the LM; `mel` is what the flow returned. From the second chunk on the vocoder is given another mel,
joined from all passes so far. Its pass has a file of its own, such as 1-vocoder.safetensors.
"""

import functools
from pathlib import Path

import torch
from safetensors.torch import save_file


def record(model, folder):
    """Record each later call of `model.llm`, `model.flow` and `model.hift` into files of a folder."""
    folder, decoder = Path(folder), model.flow.decoder
    said = {}  # the inputs of the LM, for all chunks of a sentence
    drawn = {}  # what the LM drew for the sentence, and from which log-probabilities
    kept = {}  # the pass of the flow
    sound = {}  # the pass of the vocoder
    earlier = []  # the numbers of the sentence's earlier chunks
    folder.mkdir(parents=True, exist_ok=True)

    def copy(tensor):
        return tensor.detach().cpu().clone().contiguous()

    def keep(**tensors):
        kept.update({name: copy(value) for name, value in tensors.items()})

    def hear(**tensors):
        sound.update({name: copy(value) for name, value in tensors.items()})

    def around(owner, name):
        return lambda outer: setattr(owner, name, functools.partial(outer, getattr(owner, name)))

    @around(model.llm, "inference")
    def llm(inner, **given):
        drawn.clear()
        earlier.clear()
        said.update({name: copy(given[name]) for name in ("text", "prompt_text", "prompt_speech_token")})
        return inner(**given)

    @around(model.llm, "sampling_ids")
    def draw(inner, logp, *more, **named):
        before, k = copy(logp), len(drawn) // 2  # upstream masks logp in place
        token = inner(logp, *more, **named)
        if int(token) < model.llm.speech_token_size:  # ids above it end the speech
            drawn.update({f"logp_{k}": before, f"drawn_{k}": torch.tensor(int(token))})
        return token

    @around(model.flow, "inference")
    def flow(inner, **given):
        kept.clear()
        keep(**{name: given[name] for name in ("token", "prompt_token", "prompt_feat", "embedding")})
        is_chunk = bool(given.get("streaming")) or not given.get("finalize", True)
        keep(streaming=torch.tensor(int(is_chunk)))
        if not is_chunk:  # a chunk is rendered while the LM goes on
            kept.update(drawn)
        result = inner(**given)
        keep(mel=result[0])
        return result

    @around(decoder, "solve_euler")
    def solve(inner, x, t_span, mu, mask, spks, cond, **more):
        keep(noise=x, mu=mu, spks=spks, cond=cond)
        mel = inner(x, t_span=t_span, mu=mu, mask=mask, spks=spks, cond=cond, **more)
        keep(**{f"x{len(t_span) - 1}": mel, f"t{len(t_span) - 1}": t_span[-1]})
        return mel

    @around(decoder, "forward_estimator")
    def estimate(inner, x, mask, mu, t, *more, **named):
        k, rate = sum(name.startswith("v1_") for name in kept), decoder.inference_cfg_rate
        keep(**{f"x{k}": x[:1], f"t{k}": t[0]})  # before the call: TensorRT writes its result into x
        v = inner(x, mask, mu, t, *more, **named)
        # Upstream combines the two branches elsewhere. If it does so in another way, the next x will differ.
        keep(**{f"v1_{k}": v[:1], f"v2_{k}": v[1:], f"v_cfg_{k}": (1.0 + rate) * v[:1] - rate * v[1:]})
        return v

    @around(model.hift, "_istft")
    def istft(inner, magnitude, phase):
        hear(magnitude=magnitude.clamp(max=100.0), phase=phase)  # upstream clips it inside
        return inner(magnitude, phase)

    @around(model.hift, "inference")
    def hift(inner, speech_feat, **more):
        result = inner(speech_feat=speech_feat, **more)
        hear(mel=speech_feat, speech=result[0])
        number = sum(path.stem.isdecimal() for path in folder.glob("*.safetensors"))
        if not earlier:
            save_file(said | kept | sound, folder / f"{number}.safetensors")
        else:
            shared = {name: kept[name] for name in ("token", "prompt_token", "prompt_feat", "embedding")}
            shared["streaming"] = torch.tensor(1)  # its mel is of several passes, even when the stream ends
            save_file(said | kept, folder / f"{number}.safetensors")
            save_file(said | shared | sound, folder / f"{number}-vocoder.safetensors")
        if more.get("finalize", True):  # the sentence is over; a conversion has no inputs of the LM
            said.clear()
            earlier.clear()
        else:
            earlier.append(number)
        kept.clear()
        sound.clear()
        return result

    model.hift.f0_predictor.register_forward_hook(lambda module, given, f0: hear(f0=f0))
    model.hift.m_source.register_forward_hook(lambda module, given, made: hear(sine_merge=made[0]))
