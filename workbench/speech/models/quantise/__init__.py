"""Quantised weights, simulated: a weight is quantised and dequantised, and the ordinary model runs with it.

| file      | formats                                                               | library            |
|-----------|-----------------------------------------------------------------------|--------------------|
| `ggml`    | q8_0, q6_k, q5_k, q4_k, q5_1, q5_0, q4_1, q4_0                        | ggml, gguf         |
| `scaled`  | int8, int4, mlx8, mlx4, fp8_e4m3, fp8_e5m2, nf4                       | onnxruntime,       |
|           |                                                                       | torchao, mlx,      |
|           |                                                                       | bitsandbytes       |
| `codes`   | of those that ONNX can express: the codes, scales and zeros           |                    |
| `quantise`| `quantise`: one tensor in any format; `formats`: the table            |                    |
| `modules` | which layers of a model have a weight to quantise; replaces them      |                    |

Left out are the kernels of those libraries. ggml and int8 servers also quantise the activations before a
product and sum in integers; MLX, torchao and bitsandbytes multiply in the type of the activations.
"""
