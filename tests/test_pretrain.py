"""examples/pretrain.py by one process: its data, its settings, its files and its failures."""

import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from safetensors.torch import load_file

from mae_hf import MAEForPreTraining, MAEModel
from tests.pretraining import TORCHRUN, apart, logged, run, weights, write_images

pytestmark = pytest.mark.heavy  # accelerate and datasets come with what `make test-all` installs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folder of 22 images: 5 batches of 4."""
    return write_images(tmp_path_factory.mktemp("images") / "images", 22)


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """Makes a run of 3 epochs of the images, with options; its output in `output`."""

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
    """Output of a run of 3 epochs with nothing special."""
    return trained().output


def test_workers_and_pictures_change_no_loss(trained, plain, images):
    workers = ["--dataloader_num_workers", "2", "--dataloader_persistent_workers"]
    pictures = ["--pictures", images / "03.png", images / "04.png", "--picture_steps", "4"]
    output = trained(*workers, *pictures).output
    assert len(logged(output)) == 15 and logged(output) == logged(plain)
    assert apart(weights(output), weights(plain)) == 0
    written = sorted(path.name for path in (output / "pictures").iterdir())
    assert written == ["0000004.png", "0000008.png", "0000012.png", "0000015.png"]  # and one at the end
    for path in (output / "pictures").iterdir():
        with Image.open(path) as picture:
            assert picture.width > 4 * 32 and picture.height > 2 * 32


def test_worker_of_each_epoch_changes_no_loss(trained, plain):
    assert logged(trained("--dataloader_num_workers", "1").output) == logged(plain)


def test_accumulation_over_more_than_an_epoch_steps_once_an_epoch(trained):
    rate = ["--learning_rate", "1e-3"]
    output = trained(*rate, "--gradient_accumulation_steps", "8", epochs=6).output
    expected = trained(*rate, "--per_device_train_batch_size", "20", epochs=6).output
    assert list(logged(output)) == [1, 2, 3, 4, 5, 6]
    assert apart(logged(output), logged(expected)) < 1e-5
    assert apart(weights(output), weights(expected)) < 1e-4


def test_what_is_no_image_is_named_and_left_out(trained, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "05.png").write_text("no image")
    (folder / "notes.txt").write_text("about the images")
    done = trained(images=folder, epochs=2)
    assert f"{folder}/05.png is no image that can be read" in done.stderr
    assert "notes.txt" in done.stderr
    assert len(logged(done.output)) == 10


@pytest.mark.parametrize("content", ["nothing", "no folder", "text"])
def test_folder_without_images_is_one_line(trained, tmp_path, content):
    folder = tmp_path / "images"
    if content != "no folder":
        folder.mkdir()
    if content == "text":
        (folder / "notes.txt").write_text("about the images")
    assert_one_line(trained(images=folder, status=1), "there is no (folder|image in) " + re.escape(str(folder)))


def assert_one_line(done, expected):
    assert done.stderr.count("\n") == 1 and re.match("pretrain: " + expected, done.stderr), done.stderr
    assert not done.output.exists() or not any(done.output.iterdir())


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--per_device_train_batch_size", "23"], r"22 images are fewer than the 23 .*\(1 x 23\)"),
        (["--warmup_epochs", "3"], "warmup_epochs must be .* less than num_train_epochs, 3, got 3"),
        (["--images", ""], "there is no folder"),
    ],
)
def test_wrong_settings_are_one_line(trained, options, expected):
    assert_one_line(trained(*options, status=1), expected)


def test_missing_images_are_one_line(tmp_path):
    done = run(tmp_path, "--output_dir", tmp_path / "output", status=1)
    assert re.fullmatch("pretrain: --images is missing.*\n", done.stderr)


def test_too_few_images_for_all_processes_are_said_once(trained):
    done = trained("--per_device_train_batch_size", "12", launcher=TORCHRUN, status=1)
    assert "22 images are fewer than the 24 of one batch for each process (2 x 12)" in done.stderr


def test_loss_that_is_nan_stops_before_a_checkpoint_of_it(trained):
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


def test_nan_after_the_last_line_of_log_stops_too(trained):
    options = ["--learning_rate", "1e30", "--warmup_epochs", "0", "--save_strategy", "no", "--logging_steps", "100"]
    done = trained(*options, status=1)
    assert re.search(r"the loss is (nan|inf) at step 15.* The last checkpoint is none\n", done.stderr)
    assert not (done.output / "model.safetensors").exists()


def test_bad_images_of_every_process_are_named(trained, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    for index in range(22):
        if index % 3 == 0:
            (folder / f"{index:02}.png").write_text("no image")
    halves = ["--per_device_train_batch_size", "1"]  # no image is left over: 11 batches
    done = trained(*halves, images=folder, epochs=1, launcher=TORCHRUN)
    named = set(re.findall(r"images/(\d\d).png is no image", done.stderr))
    assert named == {f"{index:02}" for index in range(0, 22, 3)}


def test_name_of_the_folder_may_have_brackets(trained, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "a[b]*")
    assert len(logged(trained(images=folder, epochs=1).output)) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_are_all_bad_are_an_error(trained, tmp_path, workers):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(4):
        (folder / f"{index}.png").write_text("no image")
    done = trained("--dataloader_num_workers", workers, images=folder, epochs=1, status=1)
    assert "pretrain: none of the images can be read" in done.stderr and "Traceback" not in done.stderr


def test_bfloat16_follows_float32(trained, plain):
    assert 0 < apart(logged(trained("--bf16").output), logged(plain)) < 0.05


def test_validation_loss_is_of_all_images_whatever_the_batch(trained, plain, images):
    outputs = [
        trained("--validation", images, "--per_device_eval_batch_size", batch, epochs=1).output for batch in (8, 22)
    ]
    found, expected = (logged(output, "eval_loss") for output in outputs)
    assert list(found) == [5]
    assert apart(found, expected) < 1e-6


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEModel])
def test_training_goes_on_from_a_folder(trained, plain, tmp_path, model_class):
    folder = tmp_path / "model"
    model_class.from_pretrained(plain).save_pretrained(folder)
    output = trained("--model", folder, "--learning_rate", "0", epochs=1).output  # so it ends with what it began with
    found, expected = (MAEForPreTraining.from_pretrained(path) for path in (output, plain))
    assert apart(found.mae.state_dict(), expected.mae.state_dict()) == 0
    if model_class is MAEForPreTraining:
        assert apart(found.state_dict(), expected.state_dict()) == 0
        assert logged(output)[1] < logged(plain)[1] - 0.05


def test_run_ends_on_the_hub(trained, hub, tmp_path):
    environment = hub.environment(tmp_path)
    to_hub = ["--push_to_hub", "--hub_model_id", "someone/pretrained"]
    output = trained(*to_hub, environment=environment, epochs=1).output
    files = hub.repos["someone/pretrained"].commits[-1].files
    assert files.keys() >= {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    load = "import mae_hf, sys; mae_hf.MAEForPreTraining.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    command = [sys.executable, "-c", load, "someone/pretrained", str(tmp_path / "back")]
    subprocess.run(command, env=environment, check=True)
    assert apart(weights(tmp_path / "back"), weights(output)) == 0
