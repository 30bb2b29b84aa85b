"""For eyes and ears: figures, the player, reports and widgets of traces and diagnoses.

- `plots/`: one function per figure; read `plots/mel.py` first
- `player/`: hear and see traces on one time axis; read `player/player.py` first
- `report/`: one HTML file that needs nothing else; read `report/report.py` first
- `widgets/`: controls for use in a notebook; read `widgets/panel.py` first
"""
