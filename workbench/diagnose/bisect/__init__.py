"""Find the submodule of a stage in which another implementation makes its error.

Read `bisect.py` first: `bisect(mine, theirs, pipe)` runs our own model on the tensors that the other program
recorded inside its model (taps), and compares tap by tap. `stages.py` lists the taps of each stage and what
each is computed from, `model_run.py` runs our model on recorded taps, `bisection.py` holds the result, and
`snippet.py` writes the code that records the next taps. `benchmark.py` measures how often it is right.
"""
