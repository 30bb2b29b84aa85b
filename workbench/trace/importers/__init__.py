"""Importers: files of other programs become traces.

Tensors: `mapping.py` reads a dump (.safetensors, .npz, .pt, raw float32) by a TOML mapping that says which
tensor is which field; `tensor_files.py` opens the file safely. Examples of mappings are in `data/foreign/`.

Text logs: read `logs.py` first. It reads what a program printed of its tensors. `log_lines.py` reads one line
with the table of names `logs.toml` that `log_names.py` opens. `log_statistics.py`, `log_tables.py` and
`log_lists.py` know the formats of lines, `log_numbers.py` those of numbers. `log_steps.py` gives each line a
step, and `log_runs.py` groups lines into runs.
"""
