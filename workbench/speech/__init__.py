"""The system under investigation: text -> speech tokens -> mel -> waveform.

Read `run.py` first: the whole path fits one screen. Then, from the outside in: `pipeline.py` (prepare,
synthesise, replay), `recording.py` (each stage for the rows of a batch, and what a trace keeps of it),
`stage_runner.py` (one stage at a time), `model_cache.py` (which model runs). `config/` holds every number,
`models/` the reference implementation, `fast/` the same stages for a GPU, `frontend/` text and audio,
`checkpoint/` the files of a voice; `batch.py` runs many variants at once, `stream.py` speaks in chunks.
"""
