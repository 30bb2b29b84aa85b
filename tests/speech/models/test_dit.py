"""The velocity estimator against upstream's parity file, and deliberate faults that must show."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from workbench.speech.config import DiTConfig
from workbench.speech.models import dit
from workbench.speech.models.dit import DiT, attention_mask

pytestmark = pytest.mark.usefixtures("no_grad")

ATOL = 2e-4  # upstream's suggestion; an exact GELU already moves the output by 4.6e-4
INPUTS = ("in.x", "in.mask", "in.mu", "in.t", "in.spks", "in.cond")


def close(found, golden, atol=ATOL):
    torch.testing.assert_close(found, golden, atol=atol, rtol=0)


def inputs(golden, dtype=torch.float32):
    return [golden.data[name].to(dtype) for name in INPUTS]


def tapped(model, args, streaming):
    """Run and keep what every submodule gave."""
    kept, handles = {}, []
    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(lambda m, i, out, name=name: kept.update({name: out})))
    try:
        kept["out"] = model(*args, streaming=streaming)
    finally:
        for handle in handles:
            handle.remove()
    return kept


@pytest.mark.parametrize("mode", ["offline", "streaming"])
def test_every_stage_is_upstreams(dit_model, dit_golden, mode):
    kept = tapped(dit_model, inputs(dit_golden), mode == "streaming")
    golden = {k.removeprefix(f"{mode}."): v for k, v in dit_golden.data.items() if k.startswith(f"{mode}.")}
    assert set(golden) >= {"out", "block.0", "block.2"}
    for name, expected in golden.items():
        close(kept[name.replace("block.", "transformer_blocks.")], expected)


def test_padded_frames_are_upstreams_too(dit_model, dit_golden):
    valid = dit_golden.info["valid_lengths"]
    assert valid[1] < dit_golden.data["in.x"].shape[-1]
    for mode in ("offline", "streaming"):
        out = dit_model(*inputs(dit_golden), streaming=mode == "streaming")
        padded = out[1, :, valid[1] :]
        close(padded, dit_golden.data[f"{mode}.out"][1, :, valid[1] :])
        assert padded.abs().max() > 0.1  # the output is not multiplied by the mask


@pytest.mark.parametrize("streaming", [False, True])
def test_float64_agrees(dit_model, dit_golden, streaming):
    model = copy.deepcopy(dit_model).double()
    out = model(*inputs(dit_golden, torch.float64), streaming=streaming)
    assert out.dtype == torch.float64
    close(out.float(), dit_golden.data["streaming.out" if streaming else "offline.out"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_float32(dit_model, dit_golden, dtype):
    x, mask, mu, t, spks, cond = inputs(dit_golden)
    model = copy.deepcopy(dit_model).to(dtype)
    out = model(x.to(dtype), mask, mu.to(dtype), t, spks.to(dtype), cond.to(dtype))
    golden = dit_golden.data["offline.out"]
    assert out.dtype == dtype
    error = (out.float() - golden).square().mean().sqrt() / golden.square().mean().sqrt()
    assert error < (0.01 if dtype == torch.float16 else 0.05)


def test_batch_rows_are_independent(dit_model, dit_golden):
    args = inputs(dit_golden)
    close(dit_model(*(a[:1] for a in args)), dit_golden.data["offline.out"][:1])


def test_scalar_time_is_repeated_and_full_mask_is_no_mask(dit_model, dit_golden):
    x, mask, mu, t, spks, cond = inputs(dit_golden)
    full = torch.ones_like(mask)
    expected = dit_model(x, full, mu, t[:1].expand(2), spks, cond)
    close(dit_model(x, None, mu, t[0], spks, cond), expected, atol=1e-5)  # another kernel


def test_attention_mask_is_none_without_padding_and_chunks():
    assert attention_mask(None, 7, None, "cpu") is None
    assert attention_mask(torch.ones(2, 1, 7), 7, None, "cpu").all()


def test_attention_mask_of_chunks_and_padding():
    mask = torch.tensor([[[1, 1, 1, 1, 1]], [[1, 1, 1, 1, 0]]])
    allowed = attention_mask(mask, 5, 2, "cpu").int().tolist()
    assert allowed[0] == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert allowed[1] == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    padding = attention_mask(mask, 5, None, "cpu")
    assert padding.shape == (2, 5, 5)
    assert padding[1].int().tolist() == [[1, 1, 1, 1, 0]] * 5


def test_rotation_changes_head_zero_only_and_keeps_norms():
    cos, sin = dit.RotaryEmbed(64)(6)
    q = torch.randn(1, 6, 256, generator=torch.Generator().manual_seed(0))
    rotated = dit.rotate_first_head(q, cos, sin)
    assert torch.equal(rotated[..., 64:], q[..., 64:])
    assert torch.equal(rotated[:, 0], q[:, 0])  # position 0 is not rotated
    close(rotated[..., :64].norm(dim=-1), q[..., :64].norm(dim=-1), atol=1e-5)
    pair = torch.view_as_complex(q[..., :64].unflatten(-1, (-1, 2)).contiguous())
    angle = torch.arange(6)[:, None] * 10_000.0 ** (-torch.arange(0, 64, 2) / 64)
    expected = torch.view_as_real(pair * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    close(rotated[..., :64], expected, atol=1e-5)


def test_default_sizes_are_the_released_ones():
    with torch.device("meta"):
        model = DiT(DiTConfig())
    assert len(model.transformer_blocks) == 22
    assert model.proj_out.weight.shape == (80, 1024)


# Deliberate faults. Each is as far off as upstream was when it had the same one, which shows both
# that the tests above can fail and that the fault is the one it is called.


def rope_every_head(m, model):
    one = dit.rotate_first_head

    def every(q, cos, sin):
        return torch.cat([one(head, cos, sin) for head in q.split(2 * cos.shape[-1], dim=-1)], dim=-1)

    m.setattr(dit, "rotate_first_head", every)


def rope_half_split(m, model):
    def half_split(q, cos, sin):
        first, second, rest = q.split([cos.shape[-1]] * 2 + [q.shape[-1] - 2 * cos.shape[-1]], dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)

    m.setattr(dit, "rotate_first_head", half_split)


def no_rope(m, model):
    m.setattr(dit, "rotate_first_head", lambda q, cos, sin: q)


def chunk_25(m, model):
    model.config = replace(model.config, static_chunk_size=25)


def chunk_mask_missing(m, model):
    model.config = replace(model.config, static_chunk_size=10_000)


def pad_mask_ignored(m, model):
    original = dit.attention_mask
    m.setattr(dit, "attention_mask", lambda mask, *rest: original(None, *rest))


def swap(n):
    def fault(m, model):
        right = dit.Modulation.forward

        def swapped(self, time):
            first, second, *rest = right(self, time)
            return (second, first, *rest) if self.n == n else (first, second, *rest)

        m.setattr(dit.Modulation, "forward", swapped)

    return fault


def exact_gelu(m, model):
    for module in model.modules():
        if isinstance(module, torch.nn.GELU):
            module.approximate = "none"


def layer_norm_eps(m, model):
    def modulate(x, shift, scale):
        return F.layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + scale) + shift

    m.setattr(dit, "modulate", modulate)


def time_features(scale=1000.0, less=1, cos_first=False):
    def fault(m, model):
        def forward(self, t):
            freq = torch.exp(torch.arange(128) * -(math.log(10_000) / (128 - less)))
            angle = scale * t[:, None] * freq
            parts = (angle.cos(), angle.sin()) if cos_first else (angle.sin(), angle.cos())
            return self.time_mlp(torch.cat(parts, dim=-1))

        m.setattr(dit.TimeEmbed, "forward", forward)

    return fault


def concat_order(m, model):
    right = dit.InputEmbed.forward
    m.setattr(dit.InputEmbed, "forward", lambda self, x, cond, mu, spks: right(self, x, mu, cond, spks))


def padded_rows_kept(m, model):
    def forward(self, x, rope, mask):
        q, k = dit.rotate_first_head(self.to_q(x), *rope), dit.rotate_first_head(self.to_k(x), *rope)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, self.to_v(x)))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
        return self.to_out[0](y.transpose(1, 2).flatten(2))

    m.setattr(dit.Attention, "forward", forward)


FAULTS = {
    "rope on every head": (rope_every_head, "offline"),
    "rope half-split (neox) on head 0": (rope_half_split, "offline"),
    "no rope": (no_rope, "offline"),
    "streaming mask missing": (chunk_mask_missing, "streaming"),
    "streaming chunk 25 instead of 50": (chunk_25, "streaming"),
    "pad mask ignored": (pad_mask_ignored, "offline"),
    "ada shift/scale swapped (msa)": (swap(6), "offline"),
    "final norm scale/shift swapped": (swap(2), "offline"),
    "exact GELU instead of tanh": (exact_gelu, "offline"),
    "time embedding cos,sin order": (time_features(cos_first=True), "offline"),
    "time embedding half_dim instead of half_dim-1": (time_features(less=0), "offline"),
    "time embedding scale 1": (time_features(scale=1.0), "offline"),
    "concat order x,mu,cond,spk": (concat_order, "offline"),
    "attention out of padded rows not zeroed": (padded_rows_kept, "offline"),
}


def moved(model, golden, fault, mode):
    model = copy.deepcopy(model)
    with pytest.MonkeyPatch.context() as m:
        fault(m, model)
        out = model(*inputs(golden), streaming=mode == "streaming")
    return float((out - golden.data[f"{mode}.out"]).abs().max())


@pytest.mark.parametrize("name", FAULTS)
def test_faults_show(dit_model, dit_golden, sensitivity, name):
    by = moved(dit_model, dit_golden, *FAULTS[name])
    assert by > 2 * ATOL
    assert by == pytest.approx(sensitivity[name], rel=0.05)


def test_one_fault_is_too_small_to_show(dit_model, dit_golden):
    assert moved(dit_model, dit_golden, layer_norm_eps, "offline") < ATOL


def test_no_fault_no_difference(dit_model, dit_golden):
    assert moved(dit_model, dit_golden, lambda m, model: None, "offline") < ATOL
