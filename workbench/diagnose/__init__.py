"""Questions about recorded runs, each answered by one folder; none of them changes a run.

`compare/`: where do two runs part, and who made the error? Start with `compare/compare.py`.
`sounds/`: what differs between two sounds without traces? Start with `sounds/compare_sounds.py`.
`suspects/`: which known fault is it? Start with `suspects/suspects.py`.
`glitches/`: where does the audio sound wrong? Start with `glitches/glitches.py`.
`experiments/`: what do other options, texts and seeds change? Start with `experiments/experiment.py`.
`benchmarks/`: how fast and how exact is the workbench itself?
`precision.py`: which parts may run in half precision?
"""
