"""One velocity evaluation of the flow, made fast: the layers of the DiT, and a CUDA graph of all of them.

- Linear layers with the same input are fused into one. Where three TF32 products are faster than one float32
  product, linear layers split their products in this way (see `tf32x3`).
- The operations between two linear layers are one kernel, compiled by torch or written in Triton.

Shape letters: `B` utterances, `S` frames, `M` mel bins, `D` width, `H` heads, `N` rows of any matrix. An
evaluation has 2 B rows: first all utterances with their conditions, then all utterances without conditions.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.fast.cuda_graphs import CudaGraphPool, can_compile, can_compile_tf32, compiled
from workbench.speech.fast.fuse import fuse_linear
from workbench.speech.fast.tf32x3 import Tf32x3Linear, split_tf32, tf32x3_is_faster
from workbench.speech.models.dit import NORM_EPS, Block, ConvPosEmbed, DiT, RotaryEmbed

Operator = Callable[[Tensor], Tensor]


class FastBlock(NamedTuple):
    """The linear layers of one block of the estimator."""

    qkv: Operator  # (N, D) -> (N, 3 H dim_head)
    attn_out: Operator  # (N, H dim_head) -> (N, D)
    mlp_in: Operator  # (N, D) -> (N, width of the MLP)
    mlp_out: Operator  # (N, width of the MLP) -> (N, D)


class FastDiT(NamedTuple):
    """The estimator's layers and functions, in the form that its device computes fastest.

    `linear_input` lays out the input of a linear layer: it splits numbers for TF32, or changes nothing.
    """

    dit: DiT  # the rest of the estimator: embeddings and modulations
    blocks: list[FastBlock]
    proj_out: Operator
    conv_pos: Operator
    linear_input: Operator
    norm: Callable[..., Tensor]  # compiled `_norm`
    add_and_norm: Callable[..., tuple[Tensor, Tensor]]  # compiled `_add_and_norm`, or a kernel
    rotate: Callable[..., None]  # compiled `_rotate`, or a kernel
    activate: Callable[..., Tensor]  # compiled `_activate`
    compiled_linear_input: Operator
    attend: Callable[..., Tensor] | None  # a kernel for attention; includes `linear_input`


def consume_dit(dit: DiT) -> FastDiT:
    """Build the fast estimator from one that nobody else uses; see `FastFlow.consume`."""
    device, dtype = dit.proj_out.weight.device, dit.proj_out.weight.dtype
    splits = tf32x3_is_faster(device, dtype)  # whether linear layers split their products for TF32
    linear_input = split_tf32 if splits else _unchanged
    return FastDiT(
        dit=dit,
        blocks=[_consume_block(block, splits) for block in dit.transformer_blocks],
        proj_out=_linear(dit.proj_out.weight, dit.proj_out.bias, splits),
        conv_pos=_conv_pos(dit.input_embed.conv_pos_embed, splits),
        linear_input=linear_input,
        norm=compiled(_norm, device, "rows"),
        add_and_norm=_choose_add_and_norm(device, splits, linear_input),
        rotate=_choose_rotate(device),
        activate=compiled(_activate, device, "rows"),
        compiled_linear_input=compiled(linear_input, device, "rows"),
        attend=_attention_kernel(dit, splits),
    )


def _consume_block(block: Block, splits: bool) -> FastBlock:
    """Build a fast block. With `splits`, the block's linear layers lose their weights."""
    attention = block.attn
    attn_out = attention.to_out[0]
    mlp_in, mlp_out = block.ff.ff[0][0], block.ff.ff[2]
    qkv_weight, qkv_bias = fuse_linear(attention.to_q, attention.to_k, attention.to_v)
    fast = FastBlock(
        qkv=_linear(qkv_weight, qkv_bias, splits),
        attn_out=_linear(attn_out.weight, attn_out.bias, splits),
        mlp_in=_linear(mlp_in.weight, mlp_in.bias, splits),
        mlp_out=_linear(mlp_out.weight, mlp_out.bias, splits),
    )
    if splits:  # freed block by block, so that the original weights and split weights never are all in memory
        for layer in (attention.to_q, attention.to_k, attention.to_v, attn_out, mlp_in, mlp_out):
            layer.weight.data = layer.weight.new_empty(0)
    return fast


class VelocityGraph:
    """One evaluation of the velocity, with and without conditions, as a CUDA graph.

    Parameters
    ----------
    estimator : FastDiT
    graphs : CudaGraphPool
    utterances : int
        Number of utterances, B.
    length : int
        Number of frames, S.
    mask_rows : int
        Rows of `n_visible`: 0 where all frames attend to all, 1 where they attend to the same frames, or S.
    """

    def __init__(
        self, estimator: FastDiT, graphs: CudaGraphPool, utterances: int, length: int, mask_rows: int
    ) -> None:
        self.estimator, dit = estimator, estimator.dit
        device, dtype = dit.proj_out.weight.device, dit.proj_out.weight.dtype
        state_dtype = torch.promote_types(dtype, torch.float32)
        rows, width = 2 * utterances, dit.config.dim

        # Inputs at fixed addresses; a call copies its arguments here.
        self.x = torch.zeros(utterances, dit.config.mel_dim, length, device=device, dtype=state_dtype)
        self.input_bias = torch.zeros(rows, length, width, device=device, dtype=dtype)
        self.n_visible = None
        if mask_rows:
            self.n_visible = torch.full((rows, mask_rows), length, device=device, dtype=torch.int32)
        # In half precision torch's flash attention is faster than our kernel, but it takes no mask.
        has_flash = dtype != torch.float32 and not mask_rows
        self.uses_kernel = estimator.attend is not None and not has_flash
        self.modulation = torch.zeros(6 * dit.config.depth + 2, width, device=device, dtype=dtype)

        # A model in half precision has rounded its rotary frequencies too, and the angles of late frames
        # would be wrong. So the frequencies are computed again in float32.
        rotary = dit.rotary_embed if dtype == state_dtype else RotaryEmbed(dit.config.dim_head).to(device)
        cos, sin = rotary(length)  # (S, dim_head / 2)
        # Repeated for each row of q and k, so that one compiled `_rotate` serves any length:
        # (2 B S, 1, dim_head / 2) each.
        self.cos, self.sin = cos.repeat(rows, 1)[:, None], sin.repeat(rows, 1)[:, None]
        self.graph = graphs.capture(self._velocity)

    def __call__(self, x: Tensor, input_bias: Tensor, n_visible: Tensor | None, modulation: Tensor) -> Tensor:
        """Evaluate the velocity.

        Parameters
        ----------
        x : Tensor (B, M, S)
            The states.
        input_bias : Tensor (2 B, S, D)
            From `FastFlow._input_bias`.
        n_visible : Tensor (2 B, 1 or S) or None
            Each frame attends to so many frames, from the first one on; to all without it.
        modulation : Tensor (6 depth + 2, D)
            Modulations for the time of this evaluation; see `FastFlow._compute_modulations`.

        Returns
        -------
        Tensor (2 B, M, S)
            With conditions, then without. The next call overwrites it.
        """
        self.x.copy_(x)
        self.input_bias.copy_(input_bias)
        if self.n_visible is not None:
            self.n_visible.copy_(n_visible)
        self.modulation.copy_(modulation)
        return self.graph()

    def _velocity(self) -> Tensor:
        """Compute what `DiT.forward` does, for both halves; this is what the graph records."""
        estimator = self.estimator
        rows, length, _ = self.input_bias.shape

        # Input projection. The part that comes from x is the same with and without conditions.
        weight = estimator.dit.input_embed.proj.weight[:, : self.x.shape[1]]
        x_part = F.linear(self.x.transpose(1, 2).to(self.input_bias.dtype), weight)  # (B, S, D)
        h = (self.input_bias.unflatten(0, (2, -1)) + x_part).flatten(0, 1)  # (2 B, S, D)
        h = (h + estimator.conv_pos(h)).flatten(0, 1)  # (2 B S, D): from here on, rows are frames

        # `h` is the residual stream, and `y` the normalised and modulated input of the next layer. The norm
        # after a block is the first norm of the next block, or the norm before the output.
        *modulations, final_modulation = self.modulation[:, None].split(6)  # (6, 1, D) each, (2, 1, D)
        next_modulations = [*modulations[1:], final_modulation]
        shift_msa, scale_msa = modulations[0][:2]
        y = estimator.norm(h, shift_msa, scale_msa, estimator.linear_input)
        attn_bias = self._attention_bias()
        for block, modulation, next_modulation in zip(
            estimator.blocks, modulations, next_modulations, strict=True
        ):
            _, _, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation
            y = block.attn_out(self._attention(block.qkv(y), attn_bias))
            h, y = estimator.add_and_norm(h, gate_msa, y, shift_mlp, scale_mlp)
            y = block.mlp_out(estimator.activate(block.mlp_in(y), estimator.linear_input))
            next_shift, next_scale = next_modulation[:2]
            h, y = estimator.add_and_norm(h, gate_mlp, y, next_shift, next_scale)
        return estimator.proj_out(y).unflatten(0, (rows, length)).transpose(1, 2)

    def _attention_bias(self) -> Tensor | None:
        """Return what torch's attention adds to the scores, (2 B, 1, 1 or S, S): -inf for hidden frames."""
        if self.n_visible is None or self.uses_kernel:
            return None
        length = self.input_bias.shape[1]
        is_hidden = torch.arange(length, device=self.n_visible.device) >= self.n_visible[:, None, :, None]
        return torch.zeros_like(is_hidden, dtype=self.input_bias.dtype).masked_fill(is_hidden, -torch.inf)

    def _attention(self, qkv: Tensor, attn_bias: Tensor | None) -> Tensor:
        """Attend: (2 B S, 3 H dim_head) -> the input of the output layer, (2 B S, H dim_head) or split."""
        estimator = self.estimator
        rows, length, _ = self.input_bias.shape
        qkv = qkv.unflatten(1, (3, estimator.dit.config.heads, -1))  # (2 B S, 3, H, dim_head)
        first_heads = qkv[:, :2, 0]  # of q and k: only these are rotated, see `dit.rotate_first_head`
        estimator.rotate(first_heads, self.cos, self.sin)
        qkv = qkv.unflatten(0, (rows, length))  # (2 B, S, 3, H, dim_head)
        if self.uses_kernel:
            return estimator.attend(qkv, self.n_visible)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (2 B, H, S, dim_head) each
        attn_out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias)
        attn_out = attn_out.transpose(1, 2).flatten(2).flatten(0, 1)  # (2 B S, H dim_head)
        return estimator.compiled_linear_input(attn_out)


# Functions that are compiled to one kernel each. `linear_input` lays out the input of the next linear layer.


def _norm(h: Tensor, shift: Tensor, scale: Tensor, linear_input: Operator) -> Tensor:
    """Normalise and modulate as `dit.modulate` does; `scale` already includes the 1 that it adds."""
    return linear_input(torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=NORM_EPS), scale))


def _add_and_norm(
    h: Tensor, gate: Tensor, y: Tensor, shift: Tensor, scale: Tensor, linear_input: Operator
) -> tuple[Tensor, Tensor]:
    """Add a layer's output y to the state h; return the new state and the next layer's input."""
    h = torch.addcmul(h, gate, y)
    return h, _norm(h, shift, scale, linear_input)


def _rotate(qk: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the first heads of q and k, (2 B S, 2, dim_head), in place as `dit.rotate_first_head` does."""
    even, odd = qk.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)  # (2 B S, 2, dim_head / 2) each
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    qk.copy_(rotated.flatten(-2))


def _activate(y: Tensor, linear_input: Operator) -> Tensor:
    return linear_input(F.gelu(y, approximate="tanh"))


def _unchanged(x: Tensor) -> Tensor:
    return x


# Choices that depend on the device: torch, or our own kernel.


def _linear(weight: Tensor, bias: Tensor, splits: bool) -> Operator:
    """Return a linear layer that computes float32 products, or with `splits` three TF32 products for each."""
    return Tf32x3Linear(weight, bias) if splits else partial(F.linear, weight=weight, bias=bias)


def _choose_rotate(device: torch.device) -> Callable[..., None]:
    """Return `_rotate`, or our own kernel on a GPU on which this project's kernels run."""
    if not can_compile_tf32(device):
        return compiled(_rotate, device, "rows")
    from workbench.speech.fast.kernels.flow import rotate  # needs Triton

    return rotate


def _choose_add_and_norm(
    device: torch.device, splits: bool, linear_input: Operator
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a function like `_add_and_norm` without `linear_input`: our own kernel if products are split."""
    if not splits or not can_compile(device):
        return partial(compiled(_add_and_norm, device, "rows"), linear_input=linear_input)
    from workbench.speech.fast.kernels.flow import add_and_norm  # needs Triton

    return add_and_norm


def _attention_kernel(dit: DiT, splits: bool) -> Callable[..., Tensor] | None:
    """Return our own kernel for attention, if it can be compiled for this estimator."""
    if not _can_use_kernels(dit.proj_out.weight, splits):
        return None
    from workbench.speech.fast.kernels.attention import attend, supports_head_width  # needs Triton

    return attend if supports_head_width(dit.config.dim_head) else None


def _conv_pos(embed: ConvPosEmbed, splits: bool) -> Operator:
    """Return the convolutional position embedding, with our own kernel where it can be compiled.

    cuDNN would compute the groups of its convolutions one by one, and in float32 without tensor cores.
    """
    convs = embed.conv1[0], embed.conv2[0]
    weight = convs[0].weight
    if not _can_use_kernels(weight, splits):
        return embed
    from workbench.speech.fast.kernels.conv import MIN_CHANNELS, convolve, pack_conv  # needs Triton

    channels_per_group = weight.shape[1]
    if channels_per_group % MIN_CHANNELS:
        return embed
    packed_convs = [pack_conv(conv, products=3) for conv in convs]

    def fast_embed(x: Tensor) -> Tensor:  # (B, S, D) -> (B, S, D)
        x = x.transpose(1, 2)  # a view: the kernel reads and writes either layout
        for conv in packed_convs:
            convolved, _ = convolve(x, conv)
            x = F.mish(convolved)
        return x.transpose(1, 2)

    return fast_embed


def _can_use_kernels(weight: Tensor, splits: bool) -> bool:
    """Return whether our kernels can replace torch: in half precision, or where products are split."""
    is_half = weight.dtype in (torch.bfloat16, torch.float16)
    return (splits or is_half) and can_compile_tf32(weight.device)
