"""Linear layers for a few rows, each in one Triton kernel. They run on GPUs only.

The kernel also computes the RMS norm before the matrix product; SwiGLU, bias and residual come after it.
The LM's decoding step uses these layers; `kernels.lm` says why they are written by hand.

Where x has more than one row, the matrix product runs on tensor cores. These multiply TF32 numbers, which
have 11 significant bits. To keep the accuracy of float32, each number is split into a high and a low part,
and each float32 product is computed as three TF32 products of these parts; the module
`workbench.speech.fast.tf32x3` gives the details.

Shape letters: `B` rows, `D` inputs, `O` outputs, `S` shares of attention.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from workbench.speech.fast.capability import has_large_shared_memory

# Below this number of outputs, each program computes 2 outputs rather than 4. A small layer then still has
# enough programs for all multiprocessors of the GPU.
FEW_OUTPUTS = 2048
MANY_INPUTS = 2048  # above this number, eight warps sum the products of several rows, and four otherwise


def project(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    log_weight: Tensor | None = None,
    gated: bool = False,
    precision: str = "tf32x3",
    early: bool = False,
) -> Tensor:
    """Apply a linear layer to a few rows: RMS norm, matrix product, SwiGLU, bias, residual, in this order.

    Parameters
    ----------
    x : Tensor (B, D), float32 or of the weights' type
        With `log_weight`, (S, D): the shares of a single row.
    weight : Tensor (O, D), or (2 O, D) if `gated`
        float32 or bfloat16.
    norm : Tensor (D,), optional
        Weight of an RMS norm that is applied to x first.
    eps : float
        Epsilon of the norm.
    bias : Tensor (O,), optional
    add : Tensor (B, O), float32, optional
        Residual, added to the result.
    log_weight : Tensor (S, heads), float32, optional
        x is what `kernels.lm.attend` returned in S shares, a power of two. This is their `log_weight`, by
        which the shares of each head are averaged first.
    gated : bool
        Whether to apply SwiGLU: silu(first half of the products) * second half.
    precision : {"tf32x3", "tf32"}
        Precision of the matrix product where x has more than one row and weights are float32: three TF32
        products for each float32 product, or one.
        Ignored for a single row and for bfloat16 weights.
    early : bool
        Let the kernel start while the one before it still runs: see `kernels.lm`.

    Returns
    -------
    Tensor (B, O), float32
        Of several rows and `gated`: of the weights' type, to which the next layer would round it.
    """
    inputs = x.shape[1]
    rows = len(x) if log_weight is None else 1
    outputs = len(weight) // 2 if gated else len(weight)
    y = x.new_empty(rows, outputs, dtype=weight.dtype if gated and rows > 1 else torch.float32)
    # Block sizes and numbers of warps were chosen by measurements on an H200.
    if rows == 1:
        kernel = _project_one_row
        tile = {"BLOCK_OUT": 2, "BLOCK_IN": 1024, "num_warps": 4}
        if gated:
            tile["BLOCK_OUT"] = 8
        elif log_weight is not None or inputs > 4 * tile["BLOCK_IN"]:
            tile |= {"BLOCK_OUT": 4, "num_warps": 8}
        elif outputs >= FEW_OUTPUTS:
            tile["BLOCK_OUT"] = 4
        tile["SHARES"] = len(x)
        tile["HEAD_DIM"] = inputs if log_weight is None else inputs // log_weight.shape[1]
    else:
        kernel = _project_rows
        padded_rows = max(16, triton.next_power_of_2(rows))  # tensor cores multiply at least 16 rows
        # The kernel cuts the inputs into PARTS and loads a block of each part at a time; `part_bytes` is the
        # size of such a block of x, after x is cast to the type of the weights. Blocks of x and of weights
        # must fit into shared memory together, and a gated layer loads two blocks of weights at a time.
        part_bytes = 2048 if gated else 4096
        block_in = part_bytes // (padded_rows * weight.element_size())
        tile = {"ROWS": padded_rows, "BLOCK_OUT": 16, "PARTS": 4, "BLOCK_IN": block_in}
        tile |= {"PRECISION": precision, "num_warps": 4, "num_stages": 3}
        if has_large_shared_memory(x.device):
            if gated and weight.dtype == torch.float32:
                tile["BLOCK_OUT"] = 32
            elif inputs > MANY_INPUTS:
                tile |= {"PARTS": 8, "num_warps": 8}
            elif not gated and weight.dtype != torch.float32:
                tile["num_stages"] = 4
    kernel[(triton.cdiv(outputs, tile["BLOCK_OUT"]),)](
        x,
        log_weight,
        weight,
        norm,
        bias,
        add,
        y,
        rows,
        eps,
        INPUTS=inputs,
        OUTPUTS=outputs,
        GATED=gated,
        EARLY=early,
        launch_pdl=early,
        **tile,
    )
    return y


@triton.jit
def _project_one_row(
    x_ptr,  # (SHARES, INPUTS) float32
    log_weight_ptr,  # (SHARES, INPUTS / HEAD_DIM) float32, or None
    weight_ptr,  # (OUTPUTS, INPUTS), or (2 OUTPUTS, INPUTS) if GATED
    norm_ptr,  # (INPUTS,) or None
    bias_ptr,  # (OUTPUTS,) or None
    add_ptr,  # (1, OUTPUTS) or None
    y_ptr,  # (1, OUTPUTS)
    rows,  # unused; `_project_rows` needs it, and both kernels are called with the same arguments
    eps,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GATED: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK_OUT: tl.constexpr,  # outputs of one program
    BLOCK_IN: tl.constexpr,  # inputs in one block
    SHARES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Compute `project` for one row, without tensor cores: most of the time goes into reading weights.

    A program first requests all its weights, and then waits for x. So weights are on their way to the
    registers while the kernel before this one still computes x.
    """
    if EARLY:
        gdc_launch_dependents()
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    out_mask = out < OUTPUTS

    # Request what no kernel of this step computes: blocks of weights, (BLOCK_OUT, BLOCK_IN) each, of the norm
    # and the bias. The loops are unrolled (`static_range`), so that a tuple can hold the blocks: one for
    # the LM's width, five for the MLP's.
    weight, weight_up, norm = (), (), ()
    for start in tl.static_range(0, INPUTS, BLOCK_IN):
        column = start + tl.arange(0, BLOCK_IN)
        in_mask = column < INPUTS
        mask = out_mask[:, None] & in_mask[None, :]
        weight_ptrs = weight_ptr + out[:, None] * INPUTS + column[None, :]
        weight += (tl.load(weight_ptrs, mask=mask, other=0.0),)
        if GATED:
            weight_up += (tl.load(weight_ptrs + OUTPUTS * INPUTS, mask=mask, other=0.0),)
        if norm_ptr is not None:
            norm += (tl.load(norm_ptr + column, mask=in_mask, other=0.0),)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + out, mask=out_mask, other=0.0).to(tl.float32)

    # From here on read what the kernels before this one wrote.
    if EARLY:
        gdc_wait()
    if add_ptr is not None:
        residual = tl.load(add_ptr + out, mask=out_mask, other=0.0)
    # `acc` keeps one partial sum for each column of a block. The columns are summed after the loop.
    acc = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    acc_up = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)  # likewise for the second half of the weights
    squares = tl.zeros((BLOCK_IN,), tl.float32)  # sums of x ** 2, for the RMS norm
    for block in tl.static_range(0, (INPUTS + BLOCK_IN - 1) // BLOCK_IN):
        # Load a block of x. If it comes in shares, average these by their softmax weights. The weights are
        # those of the column's head.
        column = block * BLOCK_IN + tl.arange(0, BLOCK_IN)
        in_mask = column < INPUTS
        if log_weight_ptr is not None:
            share = tl.arange(0, SHARES)[:, None]
            log_weight_ptrs = log_weight_ptr + share * (INPUTS // HEAD_DIM) + (column // HEAD_DIM)[None, :]
            log_weight = tl.load(log_weight_ptrs, mask=in_mask[None, :], other=0.0)
            shares = tl.load(x_ptr + share * INPUTS + column[None, :], mask=in_mask[None, :], other=0.0)
            share_weight = tl.exp(log_weight - tl.max(log_weight, 0)[None, :])
            x = tl.sum(share_weight * shares, 0) / tl.sum(share_weight, 0)
        else:
            x = tl.load(x_ptr + column, mask=in_mask, other=0.0)

        # The RMS norm is x / rms(x) * norm. Its weight is applied here. The division comes after the loop,
        # when the sum of the squares is known, so that x is read only once.
        if norm_ptr is not None:
            squares += x * x
            x *= norm[block].to(tl.float32)

        acc += weight[block].to(tl.float32) * x[None, :]
        if GATED:
            acc_up += weight_up[block].to(tl.float32) * x[None, :]
    y = tl.sum(acc, 1)
    if GATED:
        up = tl.sum(acc_up, 1)

    # Finish the norm: divide the row by its root mean square.
    if norm_ptr is not None:
        inverse_rms = tl.rsqrt(tl.sum(squares, 0) / INPUTS + eps)
        y *= inverse_rms
        if GATED:
            up *= inverse_rms

    # Apply SwiGLU, bias and residual.
    if GATED:
        y = y * tl.sigmoid(y) * up
    if bias_ptr is not None:
        y += bias
    if add_ptr is not None:
        y += residual
    tl.store(y_ptr + out, y, mask=out_mask)


@triton.jit
def _project_rows(
    x_ptr,  # (rows, INPUTS)
    log_weight_ptr,  # unused; `_project_one_row` needs it
    weight_ptr,  # (OUTPUTS, INPUTS), or (2 OUTPUTS, INPUTS) if GATED
    norm_ptr,  # (INPUTS,) or None
    bias_ptr,  # (OUTPUTS,) or None
    add_ptr,  # (rows, OUTPUTS) or None
    y_ptr,  # (rows, OUTPUTS)
    rows,
    eps,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GATED: tl.constexpr,
    EARLY: tl.constexpr,
    ROWS: tl.constexpr,  # rows, padded for the tensor cores
    BLOCK_OUT: tl.constexpr,  # outputs of one program
    PARTS: tl.constexpr,  # parts that the inputs are cut into, one for each warp
    BLOCK_IN: tl.constexpr,  # inputs of one part that are loaded at a time
    PRECISION: tl.constexpr,  # "tf32x3" or "tf32"
):
    """Compute `project` for more than one row of x, on tensor cores.

    The inputs are cut into PARTS, and each warp sums the products of its own part. A single serial sum over
    all inputs would take longer than reading the weights does.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    row, part = tl.arange(0, ROWS), tl.arange(0, PARTS)
    out_mask, row_mask = out < OUTPUTS, row < rows
    acc = tl.zeros((PARTS, ROWS, BLOCK_OUT), tl.float32)
    acc_up = tl.zeros((PARTS, ROWS, BLOCK_OUT), tl.float32)  # likewise for the second half of the weights
    squares = tl.zeros((PARTS, ROWS), tl.float32)  # sums of x ** 2, for the RMS norm
    for start in range(0, INPUTS, PARTS * BLOCK_IN):
        # One pass reads PARTS * BLOCK_IN consecutive inputs; part k takes the k-th block of BLOCK_IN inputs.
        # Load the inputs, (PARTS, ROWS, BLOCK_IN), and the weights, (PARTS, BLOCK_IN, BLOCK_OUT).
        column = start + part[:, None] * BLOCK_IN + tl.arange(0, BLOCK_IN)[None, :]  # (PARTS, BLOCK_IN)
        in_mask = column < INPUTS
        x_ptrs = x_ptr + row[None, :, None] * INPUTS + column[:, None, :]
        x = tl.load(x_ptrs, mask=row_mask[None, :, None] & in_mask[:, None, :], other=0.0)
        weight_ptrs = weight_ptr + out[None, None, :] * INPUTS + column[:, :, None]
        weight_mask = out_mask[None, None, :] & in_mask[:, :, None]
        weight = tl.load(weight_ptrs, mask=weight_mask, other=0.0)

        # Apply the weight of the norm; the division comes after the loop, as in `_project_one_row`.
        if norm_ptr is not None:
            squares += tl.sum(x * x, 2)
            x *= tl.load(norm_ptr + column, mask=in_mask, other=0.0).to(tl.float32)[:, None, :]

        x = x.to(weight.dtype)  # `tl.dot` needs matrices of one type
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)
        if GATED:
            weight_up = tl.load(weight_ptrs + OUTPUTS * INPUTS, mask=weight_mask, other=0.0)
            acc_up = tl.dot(x, weight_up, acc_up, input_precision=PRECISION)
    y, up = tl.sum(acc, 0), tl.sum(acc_up, 0)  # (ROWS, BLOCK_OUT) each; `up` is unused unless GATED

    # Finish the norm: divide each row by its root mean square.
    if norm_ptr is not None:
        inverse_rms = tl.rsqrt(tl.sum(squares, 0) / INPUTS + eps)[:, None]
        y *= inverse_rms
        up *= inverse_rms

    # Apply SwiGLU, bias and residual.
    if GATED:
        y = y * tl.sigmoid(y) * up
    y_offset = row[:, None] * OUTPUTS + out[None, :]
    y_mask = row_mask[:, None] & out_mask[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + out, mask=out_mask, other=0.0).to(tl.float32)[None, :]
    if add_ptr is not None:
        y += tl.load(add_ptr + y_offset, mask=y_mask, other=0.0)
    tl.store(y_ptr + y_offset, y, mask=y_mask)
