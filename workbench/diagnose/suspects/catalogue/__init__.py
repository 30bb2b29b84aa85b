"""The known faults: those that ports were seen to have, and kinds of faults with a parameter.

`faults` is the catalogue, with `patches` for it. `kinds` lists the kinds, with `kind_makers`, `model_changes`
and `parameter_patches` for them.
"""
