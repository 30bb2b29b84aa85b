"""Importers: files of other programs become traces.

`dumps/` reads tensors, by a mapping that says which tensor is which field; `logs/` reads what a program
printed of its tensors. `open_run.py` opens either.
"""
