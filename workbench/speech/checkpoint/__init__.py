"""Checkpoints: load and save a folder in the layout of the released Fun-CosyVoice3-0.5B.

Read `checkpoint.py` first: `Checkpoint` holds configuration, weights and noise, and builds the models.

`files.py`                names of the files in the folder, and the atomic replacement of a folder
`stage_files.py`          the weights of each stage, in whatever files they lie
`layouts.py`              the weights in what others save: prefixes, nesting, folded weight norm
`weight_names.py`         what others call the weights
`weights.py`              weight files: safe reading, shapes, hashes
`quantised/`              weights that others quantised
`hyperyaml.py`            the language of `cosyvoice3.yaml`, read as data: nothing in it is executed
`validate.py`             checked access to the values of that file
`config_yaml.py`          the file as `Config` and `Options`
`config_yaml_write.py`    `Config` and `Options` as the file
`for_upstream.py`         the folder that upstream's own loader opens
`inspect.py`              a table of the tensors in any folder, also a broken one
"""
