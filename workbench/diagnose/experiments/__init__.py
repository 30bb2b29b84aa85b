"""How do variants of the options differ, over many utterances and seeds?

An `Experiment` makes every run and measures it: one row of a table per run. Read the files in this order:

- `experiment.py`: `Experiment`, which lists the runs and gathers the table.
- `metrics.py`: the numbers that are measured of each run.
- `judges.py`: words misheard by a recogniser and predicted quality, with libraries that are optional.
- `cached_runs.py`: `CachedRuns`, which computes a stage once for all runs that share it.
- `row_cache.py`, `metric_key.py`: finished rows in a folder, and the hash that each is found by.
- `dask_workers.py`: the same runs on the workers of a dask cluster.
"""
