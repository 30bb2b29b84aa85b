"""Which weights may be quantised: measured on the sound, part by part and all together.

| file        | answers                                                                                |
|-------------|----------------------------------------------------------------------------------------|
| `measure`   | what do these formats change, against the same runs with the weights as they are?      |
| `bisect`    | which parts, blocks and layers may be in one format, alone and together?               |
| `recommend` | which format for each block, under a size or a limit of what changes?                  |
| `heard`     | which words does a recogniser mishear, and how natural does it sound, before and after?    |
| `outliers`  | which layers have a few weights or channels that are far larger than the others?       |

Everything is measured from the reference's own inputs: the LM along the reference's tokens, flow and vocoder
from them. So a change of the sound is a change of the sound of the same tokens.
"""
