"""Quantised weights: those of others, dequantised to float32 when they are opened, and which could be.

`dequantised.py`     a tensor with the format that it had in its file; codes with scales as floats
`gguf_weights.py`    GGUF, and the sizes that its header states
`torchao_weights.py` state dicts of torchao, as torch.save and safetensors keep them; no class of it is loaded
`onnx_weights.py`    DequantizeLinear and MatMulNBits of ONNX files
`layers.py`           the layers of a checkpoint that have a matrix, and how weights would be stored
`schemes.py`         GPTQ, AWQ, bitsandbytes and others: told by the names of their tensors, not opened
"""
