"""Dumps: tensors that another program wrote, in its own names and layout.

Read `tensor_files.py` first: it opens a file or folder safely; `binary_files.py`, `nested_files.py` and
`gguf_files.py` know the formats. `mapping.py` makes a trace of it by a mapping that says which tensor is
which field, as `mapping_file.py` describes. `shipped.py` tries the mappings of `data/foreign/`, and
`proposal.py` proposes one.
"""
