"""Traces: what a run leaves behind, as fields by name.

Read `schema.py` first: it lists every field with its dimensions and unit. `trace.py` has `Trace`, the record
of one run that is saved as one file; `attributes.py` checks what stands beside its fields. `record.py` has
`Save`, which states what a run keeps, the `Recorder` that collects it, and `taps` for the inside of a module.
`importers/` reads files of other programs.

This room imports nothing of the other rooms.
"""
