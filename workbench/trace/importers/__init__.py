"""Importers: files of other programs become traces.

Tensors: `mapping.py` reads a dump (.safetensors, .npz, .pt, raw float32) by a TOML mapping that says which
tensor is which field; `tensor_files.py` opens the file safely. Examples of mappings are in `data/foreign/`.

Text logs: read `logs.py` first. It reads what a program printed of its tensors. `log_lines.py` reads one line, by
the table of names `logs.toml` (`log_names.py`); `log_statistics.py`, `log_tables.py` and `log_lists.py` know the
formats, and `log_numbers.py` reads the numbers. `log_runs.py` groups lines into runs, `log_steps.py` into steps.
"""
