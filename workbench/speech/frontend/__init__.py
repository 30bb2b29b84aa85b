"""The front end: text and recordings become the input of the models.

Read `frontend.py` first: `Frontend` prepares a `Prompt` from a recording and an `Utterance` from a text.
`utterance.py` defines both; `text/` normalises, splits and tokenizes text; `audio.py` reads and writes
waveforms and computes features; `onnx_session.py` opens the two ONNX models, speech tokenizer and speaker
encoder.
"""
