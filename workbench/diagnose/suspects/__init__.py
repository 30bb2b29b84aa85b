"""Name the known fault that a run shows: what does another implementation do differently?

Read `suspects.py` first: `find_suspects` is the whole search. `faults.py` is the catalogue of known faults,
and `patches.py` has the faulty functions that it uses. `simulate.py` runs our model with faults;
`observations.py` pairs each result of the candidate with such predictions; `scoring.py` measures how far they
are apart. `benchmark.py` counts how often the answer is right.
"""
