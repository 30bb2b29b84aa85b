"""Reports: one HTML file with figures, sound and numbers, which opens anywhere without a network.

Read `report.py` first (the class `Report`). `render.py` turns each kind of object into HTML, `run_reports.py`
makes the two usual reports, `notebook.py` runs a notebook and keeps what it showed as a page.
"""
