"""Streaming: sound in chunks, while the LM still decodes.

- `state`: how far a stream has come, and one chunk of its sound
- `stream`: one utterance or several at a time: who waits for which tokens
- `render`: flow and vocoder for the chunks that are due
"""
