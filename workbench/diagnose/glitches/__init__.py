"""Where does it sound wrong?

`find_glitches(trace)` runs every detector over a waveform and over what was recorded beside it, and returns
the places that sound wrong. Read the files in this order:

- `glitches.py`: `find_glitches` and its result, `Findings` of `Finding`.
- `detectors.py`: the table of detectors with their thresholds and usual causes.
- `analysis.py`: `Sound`, the waveform in frames, spectra and levels, as the detectors read it.
- `sample_detectors.py`, `level_detectors.py`, `spectral_detectors.py`: the detectors of a waveform;
  `pitch.py`: what they know of a voice's pitch.
- `trace_detectors.py`: the detectors of what was recorded beside it: f0, mel, tokens, text.
- `causes.py`: usual causes, and what a trace says for or against each.
- `wave_stats.py`: general figures of a waveform, such as loudness, peak and noise floor.
- `defects.py`, `benchmark.py`: defects made on purpose, and how many of them the detectors find.
"""
