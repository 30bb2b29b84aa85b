"""Read the prompts of a batch into the LM, as a CUDA graph.

Shape letters: `U` different prompts, `P` positions of a prompt, `N` positions of all prompts, `D` width, `H`
heads of keys and values, `G` query heads that share each of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.fast.cuda_graphs import CudaGraphPool, compiled
from workbench.speech.fast.lm_torch import FusedLayer, attention_inputs, output_and_mlp
from workbench.speech.models.lm import LM


class PromptReader:
    """Read prompts of one padded length, as a CUDA graph.

    The padding comes after the prompt. No position of the prompt attends to the padding, because attention is
    causal, and decoding overwrites its keys and values.

    Parameters
    ----------
    lm : LM
    layers : list of FusedLayer
        What `fuse_layers` returned for the same LM.
    graphs : CudaGraphPool
    prompts : int
        Number of prompts, U.
    length : int
        Padded length, P.
    """

    def __init__(
        self, lm: LM, layers: list[FusedLayer], graphs: CudaGraphPool, prompts: int, length: int
    ) -> None:
        self.lm, self.layers = lm, layers
        device, dtype = lm.llm_decoder.weight.device, lm.llm_decoder.weight.dtype
        self.x = torch.zeros(prompts, length, lm.config.hidden_size, device=device, dtype=dtype)  # (U, P, D)
        self.prompt_index = torch.arange(prompts, device=device)
        self.last_position = torch.zeros_like(self.prompt_index)
        cos, sin = lm.qwen.rope(0, length, like=self.x)  # (P, head_dim / 2)
        self.rope = cos.repeat(prompts, 1), sin.repeat(prompts, 1)  # (N, head_dim / 2) each
        self._attention_inputs = compiled(attention_inputs, device, "rows")
        self._output_and_mlp = compiled(output_and_mlp, device, "rows")
        self.graph = graphs.capture(self._read)

    def __call__(self, prompts: Sequence[Tensor], last_position: Tensor) -> tuple[Tensor, Tensor]:
        """Read prompts.

        Parameters
        ----------
        prompts : sequence of Tensor (P, D)
            Embedded prompts, not longer than the padded length.
        last_position : Tensor (U,)
            Index of each prompt's last position.

        Returns
        -------
        logp : Tensor (U, n_ids)
            Log-probabilities of the first token after each prompt.
        cache : Tensor (layers, 2, U, H, padded length, head_dim)
            Keys and values. The next call overwrites both results.
        """
        self.x.zero_()
        for x, prompt in zip(self.x, prompts, strict=True):
            x[: len(prompt)] = prompt
        self.last_position.copy_(last_position)
        return self.graph()

    def _read(self) -> tuple[Tensor, Tensor]:
        """Compute the results of `__call__`; this is what the graph records."""
        c, sizes = self.lm.config, self.x.shape[:2]
        x = self.x.flatten(0, 1)  # (N, D)
        cache = []
        for layer in self.layers:
            q, kv = self._attention_inputs(
                x, self.rope, layer, c.rms_norm_eps, c.num_key_value_heads, c.head_dim
            )
            q = q.flatten(1, 2).unflatten(0, sizes).transpose(1, 2)  # (U, H G, P, head_dim)
            kv = kv.unflatten(0, sizes).permute(2, 0, 3, 1, 4)  # (2, U, H, P, head_dim)
            # Every head of keys and values serves G neighbouring query heads.
            k, v = kv.repeat_interleave(q.shape[1] // kv.shape[2], dim=2)  # (U, H G, P, head_dim) each
            attn_out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            attn_out = attn_out.transpose(1, 2).flatten(2).flatten(0, 1)  # (N, H G head_dim)
            x = self._output_and_mlp(x, attn_out, layer, c.rms_norm_eps)
            cache.append(kv)
        last = x.unflatten(0, sizes)[self.prompt_index, self.last_position]  # (U, D)
        return self.lm.logp(self.lm.qwen.norm(last)), torch.stack(cache)
