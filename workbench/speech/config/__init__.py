"""The numbers of CosyVoice3, with their units: `Config` for sizes, `Options` for the settings of a run.

The weights depend on a `Config`, which is part of a `Checkpoint`. `Options` may differ from run to run and
are part of a trace. Defaults are those of the released Fun-CosyVoice3-0.5B and of upstream's inference; a
smaller voice states its own sizes in its `cosyvoice3.yaml`.

Shape letters, here and in the model files: `B` batch, `L` speech tokens, `T` mel frames, `M` mel
bins, `N` samples, `D` width, `K` knots of the time grid.
"""

from workbench.speech.config.options import (
    COMPUTE,
    DTYPES,
    FLOW,
    HIFT,
    LM,
    MAX_TIMESTEPS,
    NAMES,
    PRESETS,
    SOLVERS,
    STAGES,
    T_SCHEDULERS,
    Options,
)
from workbench.speech.config.sizes import (
    RELEASED,
    SILENT_TOKENS,
    Config,
    DiTConfig,
    FlowConfig,
    HiFTConfig,
    LMConfig,
    MelConfig,
)

__all__ = [
    "COMPUTE",
    "DTYPES",
    "FLOW",
    "HIFT",
    "LM",
    "MAX_TIMESTEPS",
    "NAMES",
    "PRESETS",
    "RELEASED",
    "SILENT_TOKENS",
    "SOLVERS",
    "STAGES",
    "T_SCHEDULERS",
    "Config",
    "DiTConfig",
    "FlowConfig",
    "HiFTConfig",
    "LMConfig",
    "MelConfig",
    "Options",
]
