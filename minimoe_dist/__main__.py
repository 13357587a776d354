"""``python -m minimoe_dist``: the same as the console script ``minimoe-dist``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
