"""examples/pretrain.py in one process, in two, and resumed after a kill: equal losses, equal weights."""

import os
import shutil
import signal
import time

import pytest
import torch

from mae_hf import MAEForPreTraining

pytest.importorskip("datasets")  # comes with what `make test-all` installs

from recipe import last_checkpoint
from tests.helpers.pretraining import (
    ACCELERATE,
    FSDP_ON_CPU,
    LIMIT,
    PYTHON,
    SETTINGS,
    TORCHRUN,
    apart,
    kill,
    logged,
    run,
    start,
    weights,
    without_key_biases,
    write_images,
)

pytestmark = pytest.mark.heavy

TWO = ["--per_device_train_batch_size", "4"]
WORKERS = ["--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true"]
FSDP2 = ["--fsdp", "--fsdp_config", '{"version": 2}']
WAYS = {  # launcher and settings: 8 images per step and 5 steps per epoch
    "one process": (PYTHON, ["--per_device_train_batch_size", "8"]),
    "accumulation": (PYTHON, [*TWO, "--gradient_accumulation_steps", "2"]),
    "torchrun": (TORCHRUN, [*TWO, *WORKERS]),
    "accelerate": (ACCELERATE, TWO),
    "FSDP2": (FSDP_ON_CPU, [*TWO, *FSDP2]),
}
FILES = {"one process": "optimizer.pt", "torchrun": "rng_state_1.pth", "FSDP2": "pytorch_model_fsdp.bin"}
FILES["accelerate"] = FILES["torchrun"]


@pytest.fixture(scope="module")
def start_of(tmp_path_factory):
    """Return a function from a way to the arguments of `start`."""
    home = tmp_path_factory.mktemp("home")
    images = write_images(home / "images", 42)

    def make(way, output):
        launcher, settings = WAYS[way]
        options = ["--num_train_epochs", "16", "--save_strategy", "steps", "--save_steps", "17", *settings]
        return (home, *SETTINGS, "--images", images, "--output_dir", output, *options), {"launcher": launcher}

    return make


@pytest.fixture(scope="module")
def finished(start_of, tmp_path_factory):
    """Return a function from a way to the output folder of an uninterrupted run, which is made once."""
    made = {}

    def make(way):
        if way not in made:
            made[way] = tmp_path_factory.mktemp("finished")
            arguments, how = start_of(way, made[way])
            run(*arguments, **how)
        return made[way]

    return make


def test_weights_move(finished, fresh):
    assert apart(weights(finished("one process")), without_key_biases(fresh().state_dict())) > 1e-2


@pytest.mark.parametrize("way", ["accumulation", "torchrun", "accelerate", "FSDP2"])
def test_same_images_per_step_give_the_same_losses_and_weights(finished, way):
    output, expected = finished(way), finished("one process")
    assert len(logged(output)) == 80
    assert apart(logged(output), logged(expected)) < 1e-5
    assert apart(weights(output), weights(expected)) < 1e-4


@pytest.mark.parametrize("way", FILES)
def test_checkpoints_are_those_of_the_way(finished, way):
    found = os.listdir(finished(way) / "checkpoint-68")
    assert FILES[way] in found
    assert (FILES["torchrun"] in found) == (way != "one process")
    assert (FILES["FSDP2"] in found) == (way == "FSDP2")
    assert {"config.json", "model.safetensors"} <= {*found}  # what --model takes


@pytest.mark.parametrize("way", FILES)
def test_trainer_state_is_the_last_file_of_a_checkpoint(finished, way):
    for state in finished(way).glob("checkpoint-*/trainer_state.json"):
        assert state.stat().st_mtime_ns == max(file.stat().st_mtime_ns for file in state.parent.iterdir())


def test_fsdp_in_half_precision_with_checkpointed_activations_follows_one_process(start_of, tmp_path):
    short = ["--num_train_epochs", "2", "--save_strategy", "no", "--bf16"]
    settings = '{"version": 2, "activation_checkpointing": true, "state_dict_type": "SHARDED_STATE_DICT"}'
    for way, options in (("one process", []), ("FSDP2", ["--fsdp_config", settings])):
        arguments, how = start_of(way, tmp_path / way)
        run(*arguments, *short, *options, **how)
    found, expected = (tmp_path / way for way in ("FSDP2", "one process"))
    assert len(logged(found)) == 10
    assert apart(logged(found), logged(expected)) < 5e-3
    assert apart(weights(found), weights(expected)) < 2e-3
    assert {value.dtype for value in weights(found).values()} == {torch.float32}
    assert MAEForPreTraining.from_pretrained(found, output_loading_info=True)[1]["missing_keys"] == set()


def kill_after_a_checkpoint(output, process):
    """Kill all processes of a run as soon as there is a complete checkpoint; return the step of the last one."""
    end = time.monotonic() + LIMIT
    while not last_checkpoint(output) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    stderr = kill(process)
    assert last_checkpoint(output), stderr
    assert process.returncode == -signal.SIGKILL  # it was still running
    return int(last_checkpoint(output).rpartition("-")[2])


@pytest.mark.parametrize("way", ["one process", "torchrun", "FSDP2"])
def test_killed_run_resumes_as_if_it_had_not_been_killed(finished, start_of, tmp_path, way):
    arguments, how = start_of(way, tmp_path)
    last = kill_after_a_checkpoint(tmp_path, start(*arguments, **how))
    assert last % 5  # within an epoch, like all checkpoints except the last
    torn = tmp_path / f"checkpoint-{last + 17}"
    shutil.copytree(tmp_path / f"checkpoint-{last}", torn, dirs_exist_ok=True)
    (torn / "trainer_state.json").unlink()  # as if the run was killed while writing it
    done = run(*arguments, **how)
    assert f"resumed from {tmp_path}/checkpoint-{last};" in done.stderr
    assert apart(logged(tmp_path), logged(finished(way))) < 1e-6
    assert apart(weights(tmp_path), weights(finished(way))) < 1e-6


def test_finished_run_is_not_changed(finished, start_of, tmp_path):
    output = shutil.copytree(finished("one process"), tmp_path / "output")
    arguments, how = start_of("one process", output)
    assert "resumed from" in run(*arguments, **how).stderr
    assert logged(output) == logged(finished("one process"))
    assert apart(weights(output), weights(finished("one process"))) == 0
