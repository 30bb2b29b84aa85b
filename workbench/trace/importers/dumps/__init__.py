"""Dumps: tensors that another program wrote, in its own names and layout.

`mapping.py` reads a dump by a TOML mapping that says which tensor is which field; `tensor_files.py` opens the
file safely. Examples of mappings are in `data/foreign/`.
"""
