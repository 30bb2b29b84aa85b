"""The player: hear and see traces, as a live widget or as HTML without a kernel.

Read `player.py` first (the widget and the function `player`). `payload.py` turns traces into data for the
page, `page.py` makes the ES module and the static HTML, `listening.py` reads results of the blind test.
On the page side, in `web/`, read `player.js` first.

Why no audio library draws it: wavesurfer.js 8.0.1 (BSD-3, 52 kB, with spectrogram, minimap, regions and hover
about 200 kB in every page) was tried in Chromium with 30 s at 24 kHz, decoded at that rate.

- At 2 and 10 pixels a sample it draws a mirrored envelope, so that a sine looks like its own modulation; it
  draws no points. At 40 pixels a sample the picture is empty: its zoom is an element as wide as the sound.
- One instance plays one sound by a clock of its own. A change between traces is then a seek of another clock,
  with a gap; here all traces run from one clock.
- Its canvases are as wide as the screen and are not drawn again for paper.
- Mel of the model, f0, tokens, lanes of findings, difference and blind test would be ours all the same.
"""
