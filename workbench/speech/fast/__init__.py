"""Fast versions of the three models, with one interface for one or several utterances.

Which file replaces which model:

| model                        | in torch                | Triton kernels, on a GPU alone              |
|------------------------------|-------------------------|---------------------------------------------|
| `models.lm`                  | `lm`, `lm_prompt`,      | `kernels.lm`, `kernels.projection`          |
|                              | `lm_torch`              |                                             |
| `models.sampling`            | `sampling`              |                                             |
| `models.flow`, `models.dit`  | `flow`, `dit`           | `kernels.flow`, `.attention`, `.conv`       |
| `models.hift`                | `hift`                  | `kernels.conv`                              |

All of them use `cuda_graphs` (CUDA graphs, compiling, copies that do not wait), `fuse` (linear layers with
the same input as one) and `tf32x3` (float32 products on tensor cores). On a CPU they run in torch alone.

What the option `compute` may change, compared with "eager":

| `compute` | may change                                                                                   |
|-----------|----------------------------------------------------------------------------------------------|
| "exact"   | the order of float32 sums: equal to "eager" up to float32 rounding, with the same tokens     |
| "fast"    | the precision too: bfloat16 for LM and flow, TF32 for the vocoder's trunk, where the options |
|           | do not ask for another precision than float32                                                |

What the kernels need, beside Triton and a C compiler. Without it, torch computes the same.

| kernel              | GPU (compute capability)            | model                                          |
|---------------------|-------------------------------------|------------------------------------------------|
| `kernels.lm`        | A100 or later (8.0)                 | float32, or bfloat16 with "fast"; head_dim a   |
|                     |                                     | power of two                                   |
| `kernels.flow`      | A100, H100, B200 (8.0, 9.0, 10.0);  | float32; half precision for the rotation       |
|                     | the rotation: A100 or later         |                                                |
| `kernels.attention` | float32: as `kernels.flow`;         | head width 16, 32, 64, ...; in half precision  |
|                     | half precision: A100 or later       | only with a mask, else torch's flash attention |
| `kernels.conv`      | flow: as `kernels.attention`;       | flow: as `kernels.attention`; vocoder:         |
|                     | vocoder: A100 or later              | float32; channels a multiple of 16             |

A GPU before Ampere, such as an RTX 2070 (7.5), has neither bfloat16 nor TF32: "fast" then computes in float32
with CUDA graphs, and a trace says so (`capability.way_taken`). The choice is tested; no such GPU has run it.

A fast path takes over the model that it is made from (`FastLM.consume`, `FastFlow.consume`,
`FastHiFT.consume`): it fuses or replaces layers in place, so that no weight is stored twice. So
`model_cache.ModelCache` builds a model for each fast path, and the eager models stay as they are.
"""
