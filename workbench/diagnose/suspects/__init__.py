"""Name the known fault that a run shows: which mistake did another implementation make?

Read `suspects.py` first: `find_suspects` is the whole search. `faults.py` is the catalogue of known faults,
and `patches.py` has the faulty functions that it uses. `simulate.py` runs our model with faults, `scoring.py`
measures how well they explain the candidate, `benchmark.py` counts how often the answer is right.
"""
