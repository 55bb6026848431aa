"""Runs of examples/pretrain.py on a tiny model, as its users start them: in processes of their own."""

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from psutil import NoSuchProcess, Process  # comes with accelerate
from safetensors.torch import load_file

from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]  # not --cpu:
ACCELERATE += ["--main_process_port", "0"]  # it would start one process; port 0 is any free one
LIMIT = 300  # seconds that a run may take
SETTINGS = ["--config", json.dumps(TINY), "--use_cpu", "--disable_tqdm", "true", "--dataloader_num_workers", "0"]
SETTINGS += ["--logging_steps", "1", "--warmup_epochs", "0.5", "--base_learning_rate", "3e-2"]


def write_images(folder, number):
    """Crops of a photograph, in a new folder."""
    folder.mkdir()
    rng = random.Random(0)
    with Image.open(ROOT / "examples" / "demo" / "chelsea.png") as photograph:
        for index in range(number):
            left, top = rng.randrange(photograph.width - 60), rng.randrange(photograph.height - 50)
            photograph.crop((left, top, left + 60, top + 50)).save(folder / f"{index:02}.png")
    return folder


def start(home, *options, script="pretrain", launcher=PYTHON, environment=os.environ):
    """Start a run, its caches in the folder `home`."""
    alone = {"HF_HOME": f"{home}/huggingface", "OMP_NUM_THREADS": "1"}
    command = [*launcher, f"examples/{script}.py", *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**environment, **alone}, **pipes)


def kill(process):
    """Kill a run with all its processes; returns what it said."""
    with contextlib.suppress(NoSuchProcess):  # it has ended
        launcher = Process(process.pid)
        for started in [launcher, *launcher.children(recursive=True)]:  # torchrun gives each a group of its own
            with contextlib.suppress(NoSuchProcess):
                started.kill()
    return process.communicate()[1]


def finish(process, status=0):
    """What a run printed, once it has ended."""
    try:
        stdout, stderr = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not finished after {LIMIT} s:\n{kill(process)}") from None
    assert process.returncode == status, stderr
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run(home, *options, status=0, **how):
    """What a run printed, whose settings `options` come after those of all runs here."""
    return finish(start(home, *SETTINGS, *options, **how), status)


def logged(output, name="loss"):
    """What was logged under a name, by step."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[name] for entry in history if name in entry}


def weights(output):
    return without_key_biases(load_file(output / "model.safetensors"))


def without_key_biases(weights):
    """They change no attention: the rounding of their gradients, which are 0, is all that moves them."""
    for name, value in weights.items():
        if name.endswith("qkv.bias"):
            value.unflatten(0, (3, -1))[1] = 0
    return weights


def apart(found, expected):
    """Largest difference between the values of two dicts."""
    assert found.keys() == expected.keys()
    return max(float(torch.as_tensor(found[key] - expected[key]).abs().max()) for key in expected)
