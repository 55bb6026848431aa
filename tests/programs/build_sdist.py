"""Build the source distribution of the current folder: `build_sdist.py FOLDER`, where it is to appear."""

import sys

from setuptools import build_meta

if __name__ == "__main__":
    build_meta.build_sdist(sys.argv[1])
