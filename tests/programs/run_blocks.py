"""Run blocks of Python code one after the other, as `python -c` does, each in its own process: `run_blocks.py CODE...`.

The processes are forks of this one, which imports the slow libraries once; the blocks have to import mae_hf themselves.
"""

import os
import sys

import torch  # noqa: F401
import transformers.modeling_utils  # noqa: F401

if __name__ == "__main__":
    sys.path[0] = ""
    for code in sys.argv[1:]:
        if os.fork() == 0:
            exec(compile(code, "<block>", "exec"), {"__name__": "__main__"})
            sys.exit()
        _, status = os.wait()
        if status:
            sys.exit(f"status {os.waitstatus_to_exitcode(status)} of this block:\n{code}")
