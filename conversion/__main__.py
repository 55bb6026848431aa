"""`python -m conversion` is `mae-hf`, from a checkout."""

import sys

from mae_hf.cli import main

if __name__ == "__main__":
    sys.exit(main())
