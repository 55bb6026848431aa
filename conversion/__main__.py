"""`python -m conversion convert | inspect | verify`, the same as `mae-hf`, from a checkout."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
