"""Compare two runs: where do they part, and did the candidate make the error there?

Read `compare.py` first: it goes through all fields in causal order. `comparison.py` holds the result and
how it shows itself. `transitions.py` recomputes a field from the fields before it. `distance.py` measures
tensors, `statistics.py` compares runs that recorded only statistics, and `plausibility.py` checks one trace
alone.
"""
