"""examples/pretrain.py in one process: its data, settings, files and errors."""

import functools
import json
import logging
import re
import shutil
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from mae_hf import MAEConfig, MAEForPreTraining, MAEModel, reconstruct
from mae_hf.configuration_mae import PRESETS
from mae_hf.reconstruction import draw_panels
from mae_hf.training import MaskingCollator

pytest.importorskip("datasets")  # comes with what `make test-all` installs
import recipe
from images import crop_and_flip, to_tensor
from pretrain import PreTraining, SaveReconstructions, make_model, pretrain, pretraining_transform
from recipe import StopAtNaN, last_checkpoint
from tests.helpers import TINY, run_program
from tests.helpers.pretraining import SETTINGS, TORCHRUN, apart, logged, run, weights, write_images

pytestmark = pytest.mark.heavy  # needs accelerate and datasets


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 22 images: 5 batches of 4."""
    return write_images(tmp_path_factory.mktemp("images") / "images", 22)


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """Return a function that runs 3 epochs with some options; `output` of the result is the output folder."""

    def trained(*options, images=images, epochs=3, **how):
        home = tmp_path_factory.mktemp("run")
        output = home / "output"
        given = ["--images", images, "--output_dir", output, "--num_train_epochs", epochs, *options]
        done = run(home, "--per_device_train_batch_size", "4", *given, **how)
        done.output = output
        return done

    return trained


@pytest.fixture(scope="module")
def plain(trained):
    """The output folder of a run of 3 epochs with default options."""
    return trained().output


def test_workers_and_reconstructions_do_not_change_the_losses(trained, plain, images):
    workers = ["--dataloader_num_workers", "2", "--dataloader_persistent_workers", "--mask", "random"]
    reconstructions = ["--pictures", images / "03.png", images / "04.png", "--picture_steps", "4"]
    output = trained(*workers, *reconstructions).output
    assert len(logged(output)) == 15 and logged(output) == logged(plain)
    assert apart(weights(output), weights(plain)) == 0
    saved = sorted((output / "pictures").iterdir())
    assert [path.name for path in saved] == ["0000004.png", "0000008.png", "0000012.png", "0000015.png"]  # the last too
    for path in saved:
        with Image.open(path) as image:
            assert image.width > 4 * 32 and image.height > 2 * 32


def test_workers_that_are_restarted_in_each_epoch_do_not_change_the_losses(trained, plain):
    assert logged(trained("--dataloader_num_workers", "1").output) == logged(plain)


def test_accumulation_over_more_than_an_epoch_steps_once_per_epoch(trained):
    rate = ["--learning_rate", "1e-3"]
    output = trained(*rate, "--gradient_accumulation_steps", "8", epochs=6).output
    expected = trained(*rate, "--per_device_train_batch_size", "20", epochs=6).output
    assert list(logged(output)) == [1, 2, 3, 4, 5, 6]
    assert apart(logged(output), logged(expected)) < 1e-5
    assert apart(weights(output), weights(expected)) < 1e-4


def test_files_that_are_not_images_are_named_and_skipped(trained, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "05.png").write_text("no image")
    (folder / "notes.txt").write_text("about the images")
    done = trained(images=folder, epochs=2)
    assert f"{folder}/05.png cannot be read as an image" in done.stderr
    assert "notes.txt" in done.stderr
    assert len(logged(done.output)) == 10


@pytest.mark.parametrize("content", ["nothing", "no folder", "text"])
def test_folder_without_images_is_refused_in_one_line(trained, tmp_path, content):
    folder = tmp_path / "images"
    if content != "no folder":
        folder.mkdir()
    if content == "text":
        (folder / "notes.txt").write_text("about the images")
    assert_one_line(trained(images=folder, status=1), "(no such folder: |no images in )" + re.escape(str(folder)))


def assert_one_line(done, expected):
    assert done.stderr.count("\n") == 1 and re.match("pretrain: " + expected, done.stderr), done.stderr
    assert not done.output.exists() or not any(done.output.iterdir())


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--per_device_train_batch_size", "23"], r"22 images are fewer than the 23 .*\(1 x 23\)"),
        (["--warmup_epochs", "3"], "warmup_epochs must be .* less than num_train_epochs, 3, got 3"),
        (["--num_train_epochs", "1.5"], "num_train_epochs must be a whole number, got 1.5: .*--max_steps"),
        (["--images", ""], "no such folder"),
        (
            ["--mask", "grid", "--config", json.dumps(TINY | {"mask_ratio": 0.7})],
            "mask_ratio 0.7 .*the nearest are 0 and 0.75",
        ),
    ],
)
def test_wrong_settings_are_refused_in_one_line(trained, options, expected):
    assert_one_line(trained(*options, status=1), expected)


def test_missing_images_are_refused_in_one_line(tmp_path):
    done = run(tmp_path, "--output_dir", tmp_path / "output", status=1)
    assert re.fullmatch("pretrain: --images is missing.*\n", done.stderr)


def test_too_few_images_for_all_processes_are_refused_in_one_line(trained):
    done = trained("--per_device_train_batch_size", "12", launcher=TORCHRUN, status=1)
    assert "22 images are fewer than the 24 of one batch for each process (2 x 12)" in done.stderr


def test_nan_loss_stops_training_before_a_checkpoint_is_saved(trained):
    options = ["--learning_rate", "1e30", "--warmup_epochs", "0", "--save_strategy", "steps", "--save_steps", "1"]
    done = trained(*options, "--logging_steps", "100", status=1)
    stopped = re.search(
        r"(?:the loss|a weight) is (nan|inf) at step (\d+).* The last checkpoint is (\S+)\n", done.stderr
    )
    assert stopped and "Traceback" not in done.stderr, done.stderr
    assert stopped[3] == f"{done.output}/checkpoint-{int(stopped[2]) - 1}"
    for file in done.output.glob("**/model.safetensors"):
        assert all(value.isfinite().all() for value in load_file(file).values())
    assert not (done.output / "model.safetensors").exists()


def test_nan_loss_after_the_last_log_entry_stops_training_too(trained):
    options = ["--learning_rate", "1e30", "--warmup_epochs", "0", "--save_strategy", "no", "--logging_steps", "100"]
    done = trained(*options, status=1)
    assert re.search(r"the loss is (nan|inf) at step 15.* The last checkpoint is none\n", done.stderr)
    assert not (done.output / "model.safetensors").exists()


def test_broken_images_of_every_process_are_named(trained, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    for index in range(22):
        if index % 3 == 0:
            (folder / f"{index:02}.png").write_text("no image")
    single = ["--per_device_train_batch_size", "1"]  # no image is left over: 11 batches
    done = trained(*single, images=folder, epochs=1, launcher=TORCHRUN)
    named = set(re.findall(r"images/(\d\d).png cannot be read", done.stderr))
    assert named == {f"{index:02}" for index in range(0, 22, 3)}


def test_folder_name_may_have_brackets(trained, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "a[b]*")
    assert len(logged(trained(images=folder, epochs=1).output)) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_folder_with_only_broken_images_is_an_error(trained, tmp_path, workers):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(4):
        (folder / f"{index}.png").write_text("no image")
    done = trained("--dataloader_num_workers", workers, images=folder, epochs=1, status=1)
    assert f"pretrain: 4 images in a row in {folder} cannot be read" in done.stderr and "Traceback" not in done.stderr


def test_bfloat16_follows_float32(trained, plain):
    assert 0 < apart(logged(trained("--bf16").output), logged(plain)) < 0.05


def test_validation_loss_covers_all_images_for_any_batch_size(trained, plain, images):
    outputs = [
        trained("--validation", images, "--per_device_eval_batch_size", batch, epochs=1).output for batch in (8, 22)
    ]
    found, expected = (logged(output, "eval_loss") for output in outputs)
    assert list(found) == [0, 5]
    assert apart(found, expected) < 1e-6


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEModel])
def test_training_starts_from_a_folder(trained, plain, tmp_path, model_class):
    folder = tmp_path / "model"
    model_class.from_pretrained(plain).save_pretrained(folder)
    options = ["--model", folder, "--config", "{}", "--learning_rate", "0"]  # the weights stay as they were loaded
    output = trained(*options, epochs=1).output
    found, expected = (MAEForPreTraining.from_pretrained(path) for path in (output, plain))
    assert apart(found.mae.state_dict(), expected.mae.state_dict()) == 0
    if model_class is MAEForPreTraining:
        assert apart(found.state_dict(), expected.state_dict()) == 0
        assert logged(output)[1] < logged(plain)[1] - 0.05


def test_model_is_pushed_to_the_hub_at_the_end(trained, hub, tmp_path):
    environment = hub.environment(tmp_path)
    to_hub = ["--push_to_hub", "--hub_model_id", "someone/pretrained"]
    output = trained(*to_hub, environment=environment, epochs=2).output
    commits = hub.repos["someone/pretrained"].commits
    assert len(commits) == 2  # the empty repository, and the model
    files = commits[-1].files
    assert files.keys() >= {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    run_program("hub_models", "download", "someone/pretrained", tmp_path / "back", env=environment)
    assert apart(weights(tmp_path / "back"), weights(output)) == 0


# settings and model, in the process of the test


@pytest.fixture
def settings(tmp_path):
    """Return a function that creates the settings of a run: those of the recipe, except for its arguments."""
    return lambda **given: PreTraining(images="x", output_dir=str(tmp_path / "output"), use_cpu=True, **given)


def test_default_settings_are_the_official_ones(settings):
    found, expected = settings(), {"num_train_epochs": 800, "warmup_epochs": 40, "base_learning_rate": 1.5e-4}
    expected |= {"weight_decay": 0.05, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "seed": 0}
    expected |= {"min_crop": 0.2, "flip": 0.5, "max_grad_norm": 0, "lr_scheduler_type": "cosine"}
    expected |= {"warmup_steps": 40 / 800, "model": "base", "norm_pix_loss": None, "dataloader_drop_last": True}
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.learning_rate == pytest.approx(1.5e-4 * found.effective_batch / 256)


def test_several_gpus_in_one_process_are_refused(settings, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs in one process: .*torchrun --nproc-per-node 2"):
        settings()


def test_transform_follows_the_settings(settings):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8))
    for given in ({"min_crop": 0.9, "flip": 1.0}, {"min_crop": 0.2, "flip": 0.0}):
        found = pretraining_transform(image, Random(3), (32, 24), settings(**given))
        assert torch.equal(found, to_tensor(crop_and_flip(image, Random(3), (32, 24), **given)))


@pytest.mark.parametrize("given", [None, False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_folder_keeps_its_norm_pix_loss_unless_it_is_given(settings, fresh, tmp_path, kept, given):
    model = fresh(norm_pix_loss=kept)
    model.save_pretrained(tmp_path / "model")
    found = make_model(settings(model=str(tmp_path / "model"), norm_pix_loss=given))
    assert found.config.norm_pix_loss is (kept if given is None else given)
    assert apart(found.state_dict(), model.state_dict()) == 0


@pytest.mark.parametrize(
    ("field", "given", "expected"),
    [(None, None, MAEConfig().norm_pix_loss), (True, None, True), (None, True, True), (True, False, False)],
)
def test_fresh_model_has_the_given_fields(settings, field, given, expected):
    fields = TINY if field is None else TINY | {"norm_pix_loss": field}
    found = make_model(settings(config=json.dumps(fields), norm_pix_loss=given)).config
    assert {name: getattr(found, name) for name in TINY} == TINY
    assert found.norm_pix_loss is expected


@pytest.mark.parametrize("size", PRESETS)
def test_fresh_model_of_every_size(settings, size):
    image_size = 4 * MAEConfig.from_preset(size).patch_size
    small = {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "image_size": image_size}
    config = make_model(settings(model=size, config=json.dumps(small))).config
    assert config.to_dict() == MAEConfig.from_preset(size, **small).to_dict()


def test_fresh_model_follows_size_and_seed(settings):
    small = {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "image_size": 32}
    assert make_model(settings(model="large", config=json.dumps(small))).config.hidden_size == 1024
    first, again, other = (make_model(settings(config=json.dumps(TINY), seed=seed)).state_dict() for seed in (1, 1, 2))
    assert apart(first, again) == 0 < apart(first, other)


def test_wrong_config_is_refused(settings, fresh, tmp_path):
    fresh().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=f"--config needs --model to be one of .*: {tmp_path}/model has a config.json"):
        make_model(settings(model=str(tmp_path / "model"), config='{"image_size": 64}'))
    with pytest.raises(ValueError, match="--config must be JSON.*'{bad'"):
        make_model(settings(config="{bad"))


def alone(output, images, *options, status=0):
    """Run in the process of the test."""
    given = ["--images", images, "--output_dir", output, "--per_device_train_batch_size", "4", *options]
    assert recipe.main(PreTraining, pretrain, [*SETTINGS, *map(str, given)]) == status


@pytest.mark.parametrize("mask", ["block", "grid"])
def test_masks_follow_the_strategy(images, tmp_path, monkeypatch, mask):
    forward, drawn = MAEForPreTraining.forward, []

    @functools.wraps(forward)
    def recorded(*args, **kwargs):
        out = forward(*args, **kwargs)
        drawn.append(out.mask.bool())
        return out

    monkeypatch.setattr(MAEForPreTraining, "forward", recorded)
    config = TINY | {"image_size": 64}  # 8 x 8 patches
    alone(tmp_path, images, "--mask", mask, "--config", json.dumps(config), "--max_steps", 3)
    collator = MaskingCollator(MAEConfig(**config), mask=mask)
    samples = [{"pixel_values": torch.zeros(0), "epoch": 0, "index": index} for index in range(22)]
    expected = {tuple(row.tolist()) for row in collator(samples)["bool_masked_pos"]}
    found = [tuple(row.tolist()) for row in torch.cat(drawn)]
    assert len(found) == 12 and {*found} <= expected
    assert len(expected) == {"block": 22, "grid": 1}[mask] and {sum(row) for row in found} == {48}


def test_images_to_reconstruct_that_cannot_be_opened_are_refused_before_training(images, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "missing.png"):
        alone(tmp_path / "output", images, "--pictures", images / "03.png", tmp_path / name, status=1)
        (line,) = capsys.readouterr().err.splitlines()
        assert str(tmp_path / name) in line
        assert not (tmp_path / "output").exists() or not any((tmp_path / "output").iterdir())


def test_reconstructions_by_a_wrapped_model_are_refused_before_training(images):
    callback = SaveReconstructions([images / "03.png"], 1)
    with pytest.raises(ValueError, match="--pictures does not work with Linear: omit --pictures"):
        callback.on_train_begin(None, None, None, model=torch.nn.Linear(1, 1))


def test_reconstructions_have_the_masks_of_the_strategy(fresh, images, tmp_path):
    callback, state = SaveReconstructions([images / "03.png"], 2, "grid"), TrainerState(global_step=2)
    callback.on_step_end(SimpleNamespace(output_dir=tmp_path), state, None, model=fresh())
    rows = [reconstruct(fresh(), images / "03.png", mask="grid")]
    expected = draw_panels(rows, ("original", "masked", "reconstruction", "pasted"), "step 2")
    with Image.open(tmp_path / "pictures" / "0000002.png") as image:
        assert image.tobytes() == expected.tobytes()


# stopping and resuming


@pytest.fixture
def stop(fresh, tmp_path):
    """Return a function that calls StopAtNaN at step 7, after a checkpoint at step 5, and returns the control."""
    TrainerState(global_step=5).save_to_json(write_checkpoint(tmp_path, 5))

    def call(event, weight=0.0, save=False, **logs):
        model, control = fresh(), TrainerControl(should_save=save)
        with torch.no_grad():
            model.decoder.mask_token.view(-1)[3] = weight
        arguments = SimpleNamespace(output_dir=str(tmp_path)), TrainerState(global_step=7), control
        getattr(StopAtNaN(), event)(*arguments, model=model, logs=logs)
        return control

    return call


def write_checkpoint(output, step, state=None):
    """Create the folder of a checkpoint, with this text as its state; return the file of the state."""
    file = output / f"checkpoint-{step}" / "trainer_state.json"
    file.parent.mkdir()
    if state is not None:
        file.write_text(state)
    return file


LAST = r"at step 7, training stops: .* The last checkpoint is \S+/checkpoint-5$"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_loss_that_is_not_finite_stops_training(stop, value):
    for name in ("loss", "train_loss"):
        with pytest.raises(ValueError, match=f"the loss is {value} {LAST}"):
            stop("on_log", **{name: value})
    stop("on_log", loss=1.0, train_loss=1.0, eval_loss=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weight_that_is_not_finite_stops_training_before_it_is_saved(stop, value):
    for event, save in (("on_step_end", True), ("on_epoch_end", True), ("on_train_end", False)):
        with pytest.raises(ValueError, match=f"a weight is {value} {LAST}".replace("-inf", "inf")):
            stop(event, value, save)
    stop("on_step_end", value)  # nothing is saved in this step


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end"])
def test_losses_are_checked_before_each_checkpoint(stop, event):
    assert stop(event, save=True).should_log
    assert not stop(event).should_log


def test_last_checkpoint_is_the_complete_one_with_the_highest_step(tmp_path):
    assert last_checkpoint(str(tmp_path / "nothing")) is None
    complete = TrainerState(global_step=1234)
    for step, state in ((300, None), (200, '{"global_step": 20'), (150, "")):
        write_checkpoint(tmp_path, step, state)
        assert last_checkpoint(str(tmp_path)) is None
    for step in (100, 9, 20):
        complete.global_step = step
        complete.save_to_json(write_checkpoint(tmp_path, step))
    assert last_checkpoint(str(tmp_path)) == f"{tmp_path}/checkpoint-100"


def test_finished_run_with_max_steps_is_not_changed(images, tmp_path, caplog):
    caplog.set_level(logging.INFO, "examples")
    output = tmp_path / "output"
    options = ["--max_steps", 3, "--save_strategy", "steps", "--save_steps", 3]
    alone(output, images, *options)
    before = {path: path.read_bytes() for path in output.glob("**/*") if path.is_file()}
    assert output / "model.safetensors" in before and "already trained" not in caplog.text
    alone(output, images, *options)
    assert f"already trained for 3 steps: the model is in {output}/checkpoint-3" in caplog.text
    assert {path: path.read_bytes() for path in output.glob("**/*") if path.is_file()} == before
    alone(output, images, "--max_steps", 4, *options[2:])
    assert f"resumed from {output}/checkpoint-3" in caplog.text and list(logged(output)) == [1, 2, 3, 4]
