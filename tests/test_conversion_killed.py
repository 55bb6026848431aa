"""The command killed while it writes: what is at its destination then, and after the next run."""

import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch

from mae_hf import MAEConfig, MAEForPreTraining
from mae_hf.cli import main
from mae_hf.conversion import verify
from mae_hf.key_maps import native_to_official

MODES = [  # target, whether something is at the destination, moments
    ("mae_hf", False, 15),
    ("mae_hf", True, 15),
    ("official", False, 10),
    ("official", True, 10),
]
FILES = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Weights of 60 MB."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
    decoder = {"decoder_num_hidden_layers": 1, "decoder_intermediate_size": 1024}
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("source") / "own.pth"
    weights = MAEForPreTraining(MAEConfig(image_size=64, **sizes, **decoder)).state_dict()
    torch.save({"model": native_to_official(weights)}, path)
    return path


@pytest.fixture(scope="module")
def new_process():
    """Makes processes that have imported the command already, and are no forks of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mae_hf.cli"])
    return context.Process


def until_it_writes(new_process, arguments, folder):
    """Start the command, and come back when something new is beside its destination."""
    there = set(os.listdir(folder))
    child = new_process(target=main, args=(arguments,))
    child.start()
    while child.is_alive() and not any(".partial-" in name for name in set(os.listdir(folder)) - there):
        time.sleep(0.0002)
    return child


def put(old, destination):
    """Make the destination as it is to be before a run: absent, or a copy of `old`."""
    if destination.is_dir():
        shutil.rmtree(destination)
    destination.unlink(missing_ok=True)
    if old is not None:
        (shutil.copytree if old.is_dir() else shutil.copy)(old, destination)


def content(path):
    """Bytes of a file, or of each file of a folder; None if there is nothing."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in path.iterdir()}
    return path.read_bytes() if path.exists() else None


def state_of(source, destination, before):
    if content(destination) == before:
        return "as before"
    if not destination.exists():
        return "absent"
    if destination.is_dir() and sorted(os.listdir(destination)) != FILES:
        return "half-written"
    return "half-written" if verify(source, destination) else "complete"


@pytest.mark.heavy
def test_killed_command_leaves_all_or_nothing(source, new_process, tmp_path):
    draw, landed, states = random.Random(0), 0, []
    for to, exists, moments in MODES:
        folder = tmp_path / f"{to}, {'there' if exists else 'absent'}"
        folder.mkdir()
        destination, old = folder / "out", tmp_path / f"old {to}" if exists else None
        options = ["--to", to, "--num-attention-heads", "8"]
        if exists:  # half precision, so that one can tell old from new
            assert main(["convert", str(source), str(old), *options, "--dtype", "float16"]) == 0
        before = content(old) if exists else None
        first_run = ["convert", str(source), str(destination), *options]
        run = [*first_run, "--overwrite"] if exists else first_run

        durations = []
        for _ in range(3):
            put(old, destination)
            child = until_it_writes(new_process, run, folder)
            began = time.perf_counter()
            child.join()
            durations.append(time.perf_counter() - began)
            assert state_of(source, destination, before) == "complete" and os.listdir(folder) == ["out"]

        for _ in range(moments):
            put(old, destination)
            child = until_it_writes(new_process, run, folder)
            began = time.perf_counter()
            child.join(draw.uniform(0, min(durations)))  # the shortest is the least disturbed
            if child.exitcode is not None:  # too late
                durations.append(time.perf_counter() - began)
            child.kill()
            child.join()
            landed += child.exitcode == -signal.SIGKILL
            state = state_of(source, destination, before)
            if state == "absent" and to != "official":  # two folders cannot be exchanged in one step everywhere
                assert main(first_run) == 1  # "is there already": it is put back
                state = state_of(source, destination, before)
                assert os.listdir(folder) == ["out"]
            assert state in ("as before", "complete")
            states.append(state)

        put(old, destination)
        assert main(run) == 0
        assert state_of(source, destination, before) == "complete" and os.listdir(folder) == ["out"]
    print(f"{landed} of {len(states)} landed, after {states.count('complete')} the destination was complete")
    assert len(states) == 50 and landed >= 40
