"""Checkpoints: load and save a folder in the layout of the released Fun-CosyVoice3-0.5B.

Read `checkpoint.py` first: `Checkpoint` holds configuration, weights and noise, and builds the models.

`files.py`                names of the files in the folder, and the atomic replacement of a folder
`weights.py`              weight files: safe reading, upstream's names, shapes, hashes
`hyperyaml.py`            the language of `cosyvoice3.yaml`, read as data: nothing in it is executed
`validate.py`             checked access to the values of that file
`config_yaml.py`          the file as `Config` and `Options`
`config_yaml_write.py`    `Config` and `Options` as the file
`inspect.py`              a table of the tensors in any folder, also a broken one
"""
