"""`python -m conversion` where the package is not installed: `uninstalled_conversion.py ARGUMENTS`, in a checkout."""

import runpy
import sys

if __name__ == "__main__":
    sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
    sys.path.insert(0, "")  # as `python -m` does
    sys.argv[0] = "conversion"
    runpy.run_module("conversion", run_name="__main__", alter_sys=True)
