"""An investigation workbench for CosyVoice3."""
