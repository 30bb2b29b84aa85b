"""Second implementations as ONNX files: the flow's estimator and the vocoder's core, in ONNX Runtime.

`interface.py`   which input of a file is which, whatever its names, types and batch
`estimator.py`   a file in place of `models/dit.py`
`vocoder.py`     a file in place of the core of `models/hift.py`
`export.py`      writes both from the weights
"""
