"""Two sounds without their traces, and one: what differs, and what a sound alone can tell.

Start with `compare_sounds.py`: `compare_sounds` opens both (`sound_input.py`), aligns them (`lags.py`,
`alignment.py`), measures what is left (`measures.py`, `differences.py`, `aspects.py`), and says where each
difference could come from (`causes.py`). `sound_comparison.py` is the result. `one_sound.py` is about one.
"""
