"""The player: hear and see traces, as a live widget or as HTML without a kernel.

Read `player.py` first (the widget and the function `player`). `payload.py` turns traces into data for the
page, `page.py` makes the ES module and the static HTML. On the page side, read `player.js` first.
"""
