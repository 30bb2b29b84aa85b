"""Where tests find what is stored with the project."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "tests" / "assets"
