"""The dashboard: one widget that opens whatever a run left behind and shows what is known of it.

Read `dashboard.py` first. `tabs.py` holds the tabs, each of which calls a plain function of the package;
`run_form.py` runs again with other options. `drop_zone.py` receives dropped files, `dropped.py` opens them,
and `app.py` serves the dashboard without a notebook.
"""
