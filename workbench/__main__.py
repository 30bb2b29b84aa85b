"""`python -m workbench`: the same verbs, also where the package is not installed."""

import sys

from workbench.cli import shell

if __name__ == "__main__":
    sys.exit(shell())
