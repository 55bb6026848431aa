"""`python -m conversion convert | inspect | verify`: like `mae-hf`, from a checkout that need not be installed."""

import argparse
import sys

from mae_hf.cli import run

from .commands import add_commands

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m conversion", description="Convert weights of masked autoencoders.")
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    sys.exit(run(parser.parse_args()))
