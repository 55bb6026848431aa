"""examples/finetune.py: its settings, its optimizers, what it trains, saves and refuses."""

import json
import math
import shutil
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForImageClassification, EvalPrediction, pipeline

from mae_hf import MAEConfig, MAEForImageClassification, MAEForPreTraining
from mae_hf.configuration_mae import PRESETS

pytest.importorskip("datasets")  # comes with what `make test-all` installs
import recipe
from finetune import (
    FineTuner,
    FineTuning,
    Mixing,
    accuracies,
    fine_tuning_transform,
    finetune,
    make_model,
    make_optimizer,
)
from images import crop_and_flip, to_tensor
from tests.helpers import TINY
from tests.helpers.pretraining import FSDP_ON_CPU, apart, finish, start, without_key_biases

pytestmark = [pytest.mark.heavy, pytest.mark.one_thread]  # the same sums in every run
CLASSES = ["ant", "bee", "cat"]
PLAIN = ["--mixup", "0", "--cutmix", "0", "--drop_path", "0", "--erasing", "0", "--rand_augment", "false"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a pretrained model `mae`, and `train` of 18 and `val` of 11 images in three classes."""
    work, rng = tmp_path_factory.mktemp("finetune"), np.random.default_rng(0)
    for part, count in (("train", 18), ("val", 11)):
        for number in range(count):
            path = work / part / CLASSES[number % 3] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    torch.manual_seed(0)
    MAEForPreTraining(MAEConfig(**TINY)).save_pretrained(work / "mae")
    return work


def arguments(work, name, *options):
    where = ["--model", work / "mae", "--images", work / "train", "--output_dir", work / name]
    short = ["--num_train_epochs", "4", "--warmup_epochs", "1", "--per_device_train_batch_size", "4"]
    quick = ["--logging_steps", "1", "--dataloader_num_workers", "0", "--use_cpu", "--disable_tqdm", "true"]
    return [*map(str, [*where, *short, *quick, *options])]


def run(work, name, *options):
    """Fine-tune; return the output folder."""
    assert recipe.main(FineTuning, finetune, arguments(work, name, *options)) == 0
    return work / name


@pytest.fixture(scope="module")
def tuned(work):
    """The output folder of a run with drop path, mixing, erasing and layer decay: four epochs of four steps."""
    options = ["--drop_path", "0.3", "--learning_rate", "0.01", "--layer_decay", "0.5", "--save_total_limit", "9"]
    return run(work, "tuned", "--validation", work / "val", *options)


@pytest.fixture(scope="module")
def probe(work):
    return run(work, "probe", "--linear_probe", "--learning_rate", "5", "--validation", work / "val")


def history(folder, key="loss"):
    """Return the values that were logged at each step or at each evaluation."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in log if key in entry]


# settings

TABLE = {
    ("base", False): (100, 5, 5e-4, 1e-6, 0.05, 0.65, 0.1, 0.8, 1.0, 0.25, 0.1, True),
    ("large", False): (50, 5, 1e-3, 1e-6, 0.05, 0.75, 0.2, 0.8, 1.0, 0.25, 0.1, True),
    ("huge", False): (50, 5, 1e-3, 1e-6, 0.05, 0.75, 0.3, 0.8, 1.0, 0.25, 0.1, True),
    ("base", True): (90, 10, 0.1, 0, 0, 1, 0, 0, 0, 0, 0, False),
    ("large", True): (50, 10, 0.1, 0, 0, 1, 0, 0, 0, 0, 0, False),
    ("huge", True): (50, 10, 0.1, 0, 0, 1, 0, 0, 0, 0, 0, False),
}
OFFICIAL_WIDTHS = {PRESETS[size]["hidden_size"] for size, _ in TABLE}
FIELDS = ["num_train_epochs", "warmup_epochs", "base_learning_rate", "min_learning_rate", "weight_decay"]
FIELDS += ["layer_decay", "drop_path", "mixup", "cutmix", "erasing", "smoothing", "rand_augment"]


@pytest.fixture
def settings(tmp_path):
    """Return a function that creates the settings for a model of a size."""

    def make(size="base", config=None, **given):
        (config or MAEConfig.from_preset(size)).save_pretrained(tmp_path / size)
        return FineTuning(model=str(tmp_path / size), images="x", output_dir=str(tmp_path / "o"), use_cpu=True, **given)

    return make


@pytest.mark.parametrize(("size", "linear_probe"), TABLE)
def test_default_settings_follow_the_size(settings, size, linear_probe):
    found = settings(size, linear_probe=linear_probe)
    assert tuple(getattr(found, name) for name in FIELDS) == TABLE[size, linear_probe]
    assert found.lr_scheduler_kwargs == {"min_lr": found.min_learning_rate}
    assert found.warmup_steps == found.warmup_epochs / found.num_train_epochs
    assert (found.max_grad_norm, found.adam_beta1, found.adam_beta2) == (0, 0.9, 0.999)
    assert (found.min_crop, found.flip, found.lr_scheduler_type) == (0.08, 0.5, "cosine_with_min_lr")


@pytest.mark.parametrize("linear_probe", [False, True])
@pytest.mark.parametrize("size", [size for size in PRESETS if PRESETS[size]["hidden_size"] not in OFFICIAL_WIDTHS])
def test_default_settings_of_other_presets_are_those_of_base(settings, size, linear_probe):
    found = settings(size, linear_probe=linear_probe)
    assert tuple(getattr(found, name) for name in FIELDS) == TABLE["base", linear_probe]


@pytest.mark.parametrize("linear_probe", [False, True])
def test_default_settings_of_other_widths_are_those_of_base(settings, linear_probe):
    found = settings("custom", MAEConfig(hidden_size=96), linear_probe=linear_probe)
    assert tuple(getattr(found, name) for name in FIELDS) == TABLE["base", linear_probe]


@pytest.mark.parametrize("linear_probe", [False, True])
def test_given_settings_take_precedence(settings, linear_probe):
    given = dict(zip(FIELDS, (7, 2, 0.3, 1e-4, 0.01, 0.9, 0.05, 0.4, 0.3, 0.2, 0.15, not linear_probe), strict=True))
    found = settings("large", linear_probe=linear_probe, **given)
    assert {name: getattr(found, name) for name in FIELDS} == given


def test_zero_and_false_take_precedence_too(settings):
    given = {"weight_decay": 0.0, "mixup": 0.0, "drop_path": 0.0, "warmup_epochs": 0.0, "rand_augment": False}
    found = settings("base", **given)
    assert {name: getattr(found, name) for name in given} == given


def test_learning_rate_is_scaled_by_the_effective_batch(settings):
    batch = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 3}
    assert settings(**batch).effective_batch == 48
    assert settings(**batch).learning_rate == pytest.approx(5e-4 * 48 / 256)
    assert settings(**batch, linear_probe=True).learning_rate == pytest.approx(0.1 * 48 / 256)
    assert settings(**batch, base_learning_rate=1.0).learning_rate == pytest.approx(48 / 256)
    assert settings(**batch, learning_rate=0.01).learning_rate == 0.01


# transform and model


@pytest.mark.parametrize(("augment", "erasing"), [(False, 0), (True, 0), (False, 1), (True, 1)])
def test_transform_follows_the_settings(settings, augment, erasing):
    recipe = settings(rand_augment=augment, erasing=erasing, min_crop=0.6, flip=0.3)
    image = Image.fromarray(np.full((40, 48, 3), 200, np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None])
    kept = []
    for seed in range(20):
        plain = to_tensor(crop_and_flip(image, Random(seed), (32, 24), 0.6, 0.3))
        found = fine_tuning_transform(image, Random(seed), (32, 24), recipe)
        assert found.shape == (3, 32, 24)
        assert torch.equal(found, fine_tuning_transform(image, Random(seed), (32, 24), recipe))
        kept.append((found == plain).float().mean().item())
    if not augment:
        assert all(fraction == 1 if not erasing else 0.6 < fraction < 1 for fraction in kept)
    else:
        assert min(kept) < 0.5  # operations are skipped at random
        assert (max(kept) < 1) == bool(erasing)


@pytest.mark.parametrize(("linear_probe", "pooling", "drop_path"), [(False, "mean", 0.25), (True, "cls", 0)])
def test_model_follows_the_settings(work, settings, linear_probe, pooling, drop_path):
    recipe = settings(linear_probe=linear_probe, **({} if linear_probe else {"drop_path": 0.25}))
    recipe.model = str(work / "mae")
    model = make_model(recipe, CLASSES)
    assert (model.config.pooling, model.config.linear_probe) == (pooling, linear_probe)
    assert model.config.drop_path_rate == drop_path
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.label2id == {name: number for number, name in enumerate(CLASSES)}
    assert model(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 3)
    assert_encoder_is(model, work / "mae")


def assert_encoder_is(model, folder):
    expected = load_file(folder / "model.safetensors")
    found = {name: value for name, value in model.state_dict().items() if name.startswith("mae.encoder.blocks.")}
    assert found and all(torch.equal(value, expected[name]) for name, value in found.items())


def test_head_is_kept_for_the_same_number_of_classes_only(work, settings, tuned):
    recipe = settings()
    recipe.model = str(tuned)
    before = load_file(tuned / "model.safetensors")["head.weight"]
    assert torch.equal(make_model(recipe, CLASSES).head.weight, before)
    other = make_model(recipe, ["x", "y"])
    assert other.head.weight.shape == (2, 64) and other.head.weight.std() < 1e-3 and other.config.num_labels == 2
    assert other.config.id2label == {0: "x", 1: "y"} and other.config.label2id == {"x": 0, "y": 1}
    assert_encoder_is(other, tuned)


# optimizers and schedule


def test_linear_probe_takes_the_steps_of_the_official_lars(settings, tiny_config):
    torch.manual_seed(0)
    model = MAEForImageClassification(tiny_config(num_labels=3, linear_probe=True, pooling="cls"))
    optimizer = make_optimizer(settings(linear_probe=True, learning_rate=50.0), model)
    weights = [torch.nn.init.normal_(weight) for weight in model.head.parameters()]
    expected = [weight.detach().clone() for weight in weights]
    momenta = [torch.zeros_like(weight) for weight in weights]
    for _ in range(5):
        for number, weight in enumerate(weights):
            step = torch.randn_like(weight)
            weight.grad = step.clone()  # the optimizer may write to it
            if weight.ndim > 1:
                step = step * 0.001 * expected[number].norm() / step.norm()
            momenta[number] = 0.9 * momenta[number] + step
            expected[number] = expected[number] - 50.0 * momenta[number]
        optimizer.step()
        assert_close([weight.detach() for weight in weights], expected, rtol=1e-5, atol=1e-5)


def test_linear_probe_trains_only_the_last_layer_and_the_statistics(work, probe):
    before, after = load_file(work / "mae" / "model.safetensors"), load_file(probe / "model.safetensors")
    kept = [name for name in after if not name.startswith("head.")]
    assert kept and all(torch.equal(after[name], before[name]) for name in kept)
    assert after["head.0.num_batches_tracked"] == 16
    assert after["head.0.running_mean"].abs().max() > 0.01 and (after["head.0.running_var"] - 1).abs().max() > 0.01
    steps = [load_file(folder / "model.safetensors") for folder in probe.glob("checkpoint-*")]
    assert not torch.equal(steps[0]["head.1.weight"], steps[1]["head.1.weight"])
    assert {name for name in after if name.startswith("head.1.")} == {"head.1.weight", "head.1.bias"}


def test_learning_rate_warms_up_and_falls_by_half_a_cosine_to_the_minimum(tuned):
    cosine = [1e-6 + (0.01 - 1e-6) * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert history(tuned, "learning_rate") == pytest.approx([0, 0.0025, 0.005, 0.0075, *cosine])
    last = torch.load(tuned / "checkpoint-16" / "scheduler.pt", weights_only=True)["_last_lr"]
    layers = [1e-6 * 0.5**depth for depth in range(4)]  # head, two blocks, patches
    assert sorted(set(last), reverse=True) == pytest.approx(layers)
    assert last[0] == pytest.approx(1e-6)


def test_two_accumulated_batches_of_four_images_equal_one_of_eight(work):
    # with plain gradient descent: AdamW's steps would be nearly equal for gradients that are twice as large
    options = [*PLAIN, "--optim", "sgd", "--learning_rate", "0.5", "--warmup_epochs", "0"]
    whole = run(work, "whole", *options, "--per_device_train_batch_size", "8")
    parts = run(work, "parts", *options, "--gradient_accumulation_steps", "2")
    assert len(history(whole)) == len(history(parts)) == 8
    assert history(parts) == pytest.approx(history(whole), abs=1e-5)
    found, expected = load_file(parts / "model.safetensors"), load_file(whole / "model.safetensors")
    assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected["head.weight"].abs().max() > 0.01


FSDP2 = ["--per_device_train_batch_size", "4", "--save_strategy", "no", "--fsdp", "--fsdp_config", '{"version": 2}']


def run_by_fsdp(work, name, *options, status=0):
    """Fine-tune in two processes with FSDP; return what they printed."""
    options = arguments(work, name, *FSDP2, *options)
    return finish(start(work, *options, script="finetune", launcher=FSDP_ON_CPU), status)


@pytest.fixture(scope="module")
def twenty_four(work):
    """A folder of 24 training images, 8 of each class."""
    images = shutil.copytree(work / "train", work / "twenty-four")
    for number, name in enumerate([*CLASSES, *CLASSES]):
        shutil.copy(work / "val" / name / f"{number:02}.png", images / name / f"{number}.png")
    return images


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
def test_two_processes_with_fsdp_equal_one_process(work, twenty_four, optimizer):
    rate = ["--learning_rate", {"sgd": "0.05", "adamw_torch": "0.01"}[optimizer], "--layer_decay", "0.5"]
    options = [*PLAIN, *rate, "--optim", optimizer, "--images", twenty_four, "--smoothing", "0.1"]
    whole = run(work, f"whole by {optimizer}", *options, "--per_device_train_batch_size", "8")
    parts = work / f"parts by {optimizer}"
    assert "(4 images x 1 accumulated x 2 processes)" in run_by_fsdp(work, parts.name, *options).stderr
    assert len(history(parts)) == 12 and history(parts) == pytest.approx(history(whole), abs=1e-5)
    found, expected = (without_key_biases(load_file(folder / "model.safetensors")) for folder in (parts, whole))
    assert apart(found, expected) < 1e-4
    assert expected["head.weight"].abs().max() > 0.01


def test_activation_checkpointing_with_fsdp_drops_the_same_paths(work, twenty_four):
    options = [*PLAIN, "--learning_rate", "0.05", "--drop_path", "0.5", "--images", twenty_four]
    run_by_fsdp(work, "activations kept", *options)
    run_by_fsdp(
        work, "activations again", *options, "--fsdp_config", '{"version": 2, "activation_checkpointing": true}'
    )
    assert history(work / "activations again") == pytest.approx(history(work / "activations kept"), abs=1e-5)


def test_linear_probe_with_fsdp_is_refused(work, twenty_four):
    done = run_by_fsdp(work, "probe by fsdp", "--linear_probe", "--images", twenty_four, status=1)
    assert "finetune: --linear_probe does not work with --fsdp" in done.stderr


# loss, batches and evaluation


@pytest.fixture
def trainer(settings, tiny_config):
    torch.manual_seed(0)
    model = MAEForImageClassification(tiny_config(num_labels=3))
    torch.nn.init.normal_(model.head.weight)
    return FineTuner(model, settings())


def test_loss_is_cross_entropy_of_hard_and_of_soft_labels(trainer):
    images, hard = torch.randn(4, 3, 32, 32), torch.tensor([0, 2, 1, 1])
    soft = torch.rand(4, 3).softmax(1)
    logs = trainer.model.eval()(images).logits.log_softmax(1)
    for labels, expected in ((hard, -logs[range(4), hard].mean()), (soft, -(soft * logs).sum(1).mean())):
        loss, outputs = trainer.compute_loss(trainer.model, {"pixel_values": images, "labels": labels}, True)
        assert_close(loss, expected)
        assert_close(outputs.logits.log_softmax(1), logs)


def samples(epoch, indices=(3, 1, 2, 5)):
    generator = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": i % 3, "index": i, "epoch": epoch}
        for i in indices
    ]


def test_evaluation_samples_are_not_mixed(settings):
    batch = Mixing(settings(), 3)(samples(None))
    assert torch.equal(batch["pixel_values"], torch.stack([sample["pixel_values"] for sample in samples(None)]))
    assert batch["labels"].tolist() == [0, 1, 2, 2]


def test_training_samples_are_mixed_by_epoch_and_first_index(settings):
    def targets(epoch, indices=(3, 1, 2, 5), **given):
        return Mixing(settings(**given), 3)(samples(epoch, indices))["labels"]

    assert targets(0).shape == (4, 3) and torch.equal(targets(0), targets(0))
    assert_close(targets(0).sum(1), torch.ones(4))
    several = [targets(0), targets(1), targets(0, (6, 1, 2, 5)), targets(0, seed=1)]  # 3 and 6 are of one class
    assert all(not torch.equal(one, other) for n, one in enumerate(several) for other in several[:n])
    mixed = Mixing(settings(), 3)(samples(0))["pixel_values"]
    assert torch.equal(mixed, Mixing(settings(), 3)(samples(0, (3, 4, 5, 7)))["pixel_values"])


def test_accuracies_are_of_the_first_and_of_all_predictions():
    likeliest = np.array([[4, 1, 0, 2, 3], [0, 1, 2, 3, 5], [2, 0, 1, 4, 3], [5, 4, 3, 2, 1]])
    found = accuracies(EvalPrediction(likeliest, np.array([4, 5, 5, 4])))
    assert found == {"top1": 25.0, "top5": 75.0}


def test_linear_probe_has_hard_labels(settings):
    batch = Mixing(settings(linear_probe=True), 3)(samples(0))
    assert batch["labels"].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert torch.equal(batch["pixel_values"], torch.stack([sample["pixel_values"] for sample in samples(0)]))


def test_evaluation_does_not_drop_the_last_batch(work, monkeypatch):
    counts = []
    monkeypatch.setattr("finetune.accuracies", lambda found: counts.append(len(found.label_ids)) or {})
    folder = run(work, "counted", "--validation", work / "val", "--per_device_eval_batch_size", "4")
    assert counts == [11] * 5  # at the start too
    assert len(history(folder)) == 4 * 4


def test_trainer_sets_the_epoch_of_the_images(work, monkeypatch):
    epochs = []
    monkeypatch.setattr("images.ImageFolder.set_epoch", lambda dataset, epoch: epochs.append(epoch))
    run(work, "epochs", "--save_steps", "6", "--save_strategy", "steps", "--save_total_limit", "9")
    assert [epoch for n, epoch in enumerate(epochs) if epochs[:n][-1:] != [epoch]] == [0, 1, 2, 3]
    shutil.rmtree(work / "epochs" / "checkpoint-16")
    shutil.rmtree(work / "epochs" / "checkpoint-12")
    epochs.clear()
    run(work, "epochs")
    assert sorted(set(epochs)) == [1, 2, 3]  # resumed in the middle of the second


# what is saved


def test_run_resumed_between_epochs_equals_an_uninterrupted_one(work, tuned):
    again = work / "again"
    shutil.copytree(tuned, again)
    for name in ("checkpoint-16", "checkpoint-12"):
        shutil.rmtree(again / name)
    for file in (*again.glob("*.safetensors"), again / "trainer_state.json"):
        file.unlink()
    options = ["--drop_path", "0.3", "--learning_rate", "0.01", "--layer_decay", "0.5"]
    run(work, "again", "--validation", work / "val", *options)
    assert history(again) == pytest.approx(history(tuned), abs=1e-6) and len(history(again)) == 16
    assert history(again, "eval_loss")[-2:] == pytest.approx(history(tuned, "eval_loss")[-2:], abs=1e-6)
    found, expected = (load_file(folder / "model.safetensors") for folder in (again, tuned))
    assert_close(found, expected, rtol=0, atol=1e-6)


def test_run_resumed_within_an_epoch_equals_an_uninterrupted_one(work):
    options = ["--drop_path", "0.3", "--learning_rate", "0.01", "--save_strategy", "steps", "--save_steps", "3"]
    whole, again = run(work, "steps", *options, "--save_total_limit", "9"), work / "steps again"
    again.mkdir()
    shutil.copytree(whole / "checkpoint-6", again / "checkpoint-6")
    run(work, "steps again", *options)
    assert history(again) == pytest.approx(history(whole), abs=1e-6) and len(history(again)) == 16
    found, expected = (load_file(folder / "model.safetensors") for folder in (again, whole))
    assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [[], ["--linear_probe"]])
def test_model_of_a_preset_without_a_recipe_is_fine_tuned(work, options):
    MAEForPreTraining(MAEConfig.from_preset("tiny", image_size=32)).save_pretrained(work / "tiny")
    folder = run(work, "tuned tiny", "--model", work / "tiny", "--save_strategy", "no", *options)
    assert MAEForImageClassification.from_pretrained(folder).config.hidden_size == 192
    assert len(history(folder)) == 16


def test_saved_folder_is_a_classifier_with_the_names_of_the_classes(tuned, probe, work):
    for folder in (tuned, probe):
        for model_class in (MAEForImageClassification, AutoModelForImageClassification):
            model = model_class.from_pretrained(folder)
            assert isinstance(model, MAEForImageClassification)
            assert model.config.id2label == dict(enumerate(CLASSES))
            assert model.config.label2id == {name: number for number, name in enumerate(CLASSES)}
        (image, *_) = sorted((work / "val" / "ant").iterdir())
        found = pipeline("image-classification", str(folder), device="cpu")(str(image))
        assert sorted(entry["label"] for entry in found) == CLASSES
    assert probe.joinpath("preprocessor_config.json").exists()


# what is refused


def refused(capsys, *options):
    """Return the line on standard error of a run that fails, without the name of the program."""
    given = [*options, "--use_cpu", "--dataloader_num_workers", "0"]
    assert recipe.main(FineTuning, finetune, [*map(str, given)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line.partition(": ")[2]


def test_missing_arguments_are_refused_in_one_line(work, capsys):
    there = ["--output_dir", work / "no", "--images", work / "train"]
    assert refused(capsys, *there).startswith("--model is missing")
    assert str(work / "nothing") in refused(capsys, *there, "--model", work / "nothing")
    model = ["--model", work / "mae"]
    assert refused(capsys, *model, *there[:2]).startswith("--images is missing")
    assert refused(capsys, *model, *there[:2], "--images", work / "nothing") == f"no such folder: {work / 'nothing'}"
    assert not (work / "no").exists()


@pytest.mark.parametrize("rate", ["--learning_rate", "--base_learning_rate"])
def test_learning_rate_of_zero_is_refused_in_one_line(work, capsys, rate):
    where = ["--model", work / "mae", "--output_dir", work / "no", "--images", work / "train"]
    assert refused(capsys, *where, rate, 0) == "learning_rate must be positive, got 0"


def test_wrong_classes_are_refused_in_one_line(work, capsys):
    where = ["--model", work / "mae", "--output_dir", work / "no", "--images"]
    line = refused(capsys, *where, work / "train" / "ant")
    assert line == f"{work / 'train' / 'ant'} must contain a folder for each class, and no images outside of them"
    shutil.copytree(work / "train", work / "stray")
    shutil.copy(work / "train" / "ant" / "00.png", work / "stray")
    line = refused(capsys, *where, work / "stray")
    assert line == f"{work / 'stray'} must contain a folder for each class, and no images outside of them"
    shutil.copytree(work / "val", work / "other")
    (work / "other" / "bee").rename(work / "other" / "bug")
    line = refused(capsys, *where, work / "train", "--validation", work / "other")
    assert line == f"{work / 'other'} and {work / 'train'} have different classes"


def test_too_few_images_for_a_batch_are_refused_in_one_line(work, capsys):
    line = refused(
        capsys,
        "--model",
        work / "mae",
        "--output_dir",
        work / "no",
        "--images",
        work / "train",
        "--per_device_train_batch_size",
        19,
    )
    assert line.startswith("18 images are fewer than the 19")
