"""What does something cost, and how exact is it?

- `speed.py`: how fast the ways of computing (eager, exact, fast) are on a device.
- `accuracy.py`: how far the results of exact and fast are from eager.
- `trace_overhead.py`: what recording costs; also utterances and weights of any size, to measure with.
- `tables.py`: the measured tables as CSV files, and the Markdown pages in data/ that show them.

`workbench bench` runs them. How many glitches and suspects are found is measured beside their code, in
`glitches/benchmark.py` and `suspects/benchmark.py`.
"""
