"""`python -m workbench`: the same verbs, also where the package is not installed."""

import sys

from workbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
