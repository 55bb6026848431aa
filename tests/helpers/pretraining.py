"""Runs of examples/pretrain.py on a tiny model in child processes, as its users start them."""

import contextlib
import json
import os
import random
import subprocess
import sys

import torch
from PIL import Image
from psutil import NoSuchProcess, Process  # comes with accelerate
from safetensors.torch import load_file

from tests.helpers import CHELSEA, ROOT, TINY

PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
FSDP_ON_CPU = [*TORCHRUN, "tests/programs/fsdp_on_cpu.py"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--main_process_port", "0"]  # any free port. --cpu would start a single process
LIMIT = 300  # seconds that a run may take
SETTINGS = ["--config", json.dumps(TINY), "--use_cpu", "--disable_tqdm", "true", "--dataloader_num_workers", "0"]
SETTINGS += ["--logging_steps", "1", "--warmup_epochs", "0.5", "--base_learning_rate", "3e-2"]


def write_images(folder, number):
    """Write crops of a photograph to a folder, which is created and returned."""
    folder.mkdir()
    rng = random.Random(0)
    with Image.open(CHELSEA) as photograph:
        for index in range(number):
            left, top = rng.randrange(photograph.width - 60), rng.randrange(photograph.height - 50)
            photograph.crop((left, top, left + 60, top + 50)).save(folder / f"{index:02}.png")
    return folder


def start(home, *options, script="pretrain", launcher=PYTHON, environment=os.environ):
    """Start a run with its caches in the folder `home`."""
    alone = {"HF_HOME": f"{home}/huggingface", "OMP_NUM_THREADS": "1"}
    command = [*launcher, f"examples/{script}.py", *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**environment, **alone}, **pipes)


def kill(process):
    """Kill a run with all its processes; return its standard error."""
    with contextlib.suppress(NoSuchProcess):  # it has ended
        launcher = Process(process.pid)
        for started in [launcher, *launcher.children(recursive=True)]:  # torchrun gives each a group of its own
            with contextlib.suppress(NoSuchProcess):
                started.kill()
    return process.communicate()[1]


def finish(process, status=0):
    """Wait for a run, check its exit status and return it as a `CompletedProcess`."""
    try:
        stdout, stderr = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not finished after {LIMIT} s:\n{kill(process)}") from None
    assert process.returncode == status, stderr
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run(home, *options, status=0, **how):
    """Start a run with SETTINGS, which `options` override, and finish it."""
    return finish(start(home, *SETTINGS, *options, **how), status)


def logged(output, name="loss"):
    """The values that a run logged under a name, by step."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[name] for entry in history if name in entry}


def weights(output):
    """The weights in the folder of a run, without the biases of the keys."""
    return without_key_biases(load_file(output / "model.safetensors"))


def without_key_biases(weights):
    """Set the biases of the keys to 0: attention does not depend on them, so only rounding errors move them."""
    for name, value in weights.items():
        if name.endswith("qkv.bias"):
            value.unflatten(0, (3, -1))[1] = 0
    return weights


def apart(found, expected):
    """The largest difference between the values of two dicts."""
    assert found.keys() == expected.keys()
    return max(float(torch.as_tensor(found[key] - expected[key]).abs().max()) for key in expected)
