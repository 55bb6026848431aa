"""Launch a script with FSDP2 on CPUs: `torchrun tests/programs/fsdp_on_cpu.py SCRIPT ARGUMENTS`.

accelerate enables FSDP on accelerators only and falls back to DDP on CPUs. Here its state reports FSDP whenever it was
asked for; sharding, gathering and checkpoints are the real ones of PyTorch and accelerate, with gloo.

PyTorch keeps the process group of a sharded model, with its threads, when it is destroyed. A thread that releases its
last tensor while Python shuts down aborts the process now and then: so this program exits without a shutdown of Python.
"""

import os
import runpy
import sys
from pathlib import Path

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

original = AcceleratorState.__init__


def init(self, *args, fsdp_plugin=None, **kwargs):
    original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
    if getattr(self, "fsdp_plugin", None) is not None:
        self.distributed_type = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = init
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)  # as `python SCRIPT` has it
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as leaving:
        status = leaving.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
