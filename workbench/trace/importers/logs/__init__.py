"""Text logs: what a program printed of its tensors.

Read `logs.py` first. `log_lines.py` reads one line with the table of names `logs.toml`, which `log_names.py`
opens. `log_statistics.py`, `log_tables.py` and `log_lists.py` know the formats of lines, `log_numbers.py`
those of numbers. `log_steps.py` gives each line a step, and `log_runs.py` groups lines into runs.
"""
