"""Print the file and, where it has one, the version of each module: `where.py MODULE...`, one module a line."""

import importlib
import sys

if __name__ == "__main__":
    for name in sys.argv[1:]:
        module = importlib.import_module(name)
        print(module.__file__, getattr(module, "__version__", "-"))
