"""Importers: files of other programs become traces.

Tensors: `mapping.py` reads a dump (.safetensors, .npz, .pt, raw float32) by a TOML mapping that says which
tensor is which field; `tensor_files.py` opens the file safely. Examples of mappings are in `data/foreign/`.

Text logs: read `logs.py` first. It reads what a program printed of its tensors. `log_lines.py` finds the
statistics of one line, by the table of names `logs.toml`; `log_runs.py` groups the lines into runs and steps.
"""
