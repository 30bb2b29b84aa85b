"""Read the prompts of a batch into the LM, as a CUDA graph.

Shape letters: `U` different prompts, `P` positions of a prompt, `D` width, `H` heads of keys and values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.speech.fast.cuda_graphs import CudaGraphPool
from workbench.speech.models.lm import LM, KVCache


class PromptReader:
    """Read prompts of one padded length, as a CUDA graph.

    Reading takes about a thousand kernels, and the host needs longer to launch them than the GPU to run them.
    The padding comes after the prompt. No position of the prompt attends to the padding, because attention is
    causal, and decoding overwrites its keys and values.

    Parameters
    ----------
    lm : LM
    graphs : CudaGraphPool
    prompts : int
        Number of prompts, U.
    length : int
        Padded length, P.
    """

    def __init__(self, lm: LM, graphs: CudaGraphPool, prompts: int, length: int) -> None:
        self.lm = lm
        device, dtype = lm.llm_decoder.weight.device, lm.llm_decoder.weight.dtype
        self.x = torch.zeros(prompts, length, lm.config.hidden_size, device=device, dtype=dtype)  # (U, P, D)
        self.prompt_index = torch.arange(prompts, device=device)
        self.last_position = torch.zeros_like(self.prompt_index)
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
        cache = KVCache(self.lm.config.num_hidden_layers)
        hidden = self.lm.qwen(self.x, cache)[self.prompt_index, self.last_position]  # (U, D)
        layers = []
        for keys, values in zip(cache.keys, cache.values, strict=True):
            layers.append(torch.stack((keys, values)))  # (2, U, H, P, head_dim)
        return self.lm.logp(hidden), torch.stack(layers)
