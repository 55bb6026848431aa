"""examples/evaluate.py: its numbers, how it matches classes, and what it refuses."""

import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from mae_hf import MAEConfig, MAEForImageClassification

pytest.importorskip("datasets")  # comes with what `make test-all` installs
from evaluate import main, match
from images import evaluation_transform, read_image
from tests.helpers import ROOT, run_python

pytestmark = pytest.mark.heavy
CPU = ["--device", "cpu"]  # the expected numbers are computed on it
HERE = [*CPU, "--workers", "0"]
NAMES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]


@pytest.fixture
def classifier(tiny_config, tmp_path):
    """Return a function that saves a tiny classifier with these labels, and returns its folder."""

    def make(names=NAMES):
        torch.manual_seed(0)
        model = MAEForImageClassification(
            tiny_config(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
        )
        torch.nn.init.normal_(model.head.weight)  # with the small initial weights, all logits would be nearly equal
        model.save_pretrained(tmp_path / "classifier")
        return tmp_path / "classifier"

    return make


@pytest.fixture
def images(tmp_path):
    """Return a function that writes random images into class folders, and returns their folder."""

    def make(classes):
        rng = np.random.default_rng(0)
        for number, name in enumerate(classes):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            shape = rng.integers(36, 80, 2)
            noise = Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8)).resize(tuple(map(int, shape)))
            noise.save(tmp_path / "images" / name / f"{number:02}.png")
        return tmp_path / "images"

    return make


@torch.no_grad()
def by_hand(folder, images, label_of):
    """Return the expected line, computed image by image."""
    model, top1, top5, losses = MAEForImageClassification.from_pretrained(folder).eval(), [], [], []
    for path in sorted(images.glob("*/*.png")):
        label = label_of[path.parent.name]
        logits = model(evaluation_transform(read_image(path), None, (32, 32))[None]).logits[0]
        order = logits.argsort(descending=True).tolist()
        top1.append(order[0] == label)
        top5.append(label in order[:5])
        losses.append(cross_entropy(logits, torch.tensor(label)).item())
    count = len(losses)
    assert 0 < sum(top1) < sum(top5) < count  # otherwise the images would test little
    accuracy = f"top-1 {100 * sum(top1) / count:.3f} %  top-5 {100 * sum(top5) / count:.3f} %"
    return f"{accuracy}  loss {sum(losses) / count:.3f}  of {count} images\n"


CLASSES = [NAMES[number % 7] for number in range(23)]


@pytest.mark.parametrize(("batch_size", "workers"), [(23, 0), (5, 0), (5, 2), (1, 0)])
def test_numbers_are_those_of_each_image_by_itself(classifier, images, capsys, batch_size, workers):
    folder, shown = classifier(), images(CLASSES)
    expected = by_hand(folder, shown, {name: number for number, name in enumerate(NAMES)})
    assert main([str(folder), str(shown), "--batch-size", str(batch_size), "--workers", str(workers), *CPU]) == 0
    printed = capsys.readouterr()
    assert printed.out == expected
    assert "top-1" in printed.err  # progress


def test_folders_with_the_names_of_labels_are_matched_by_name(classifier, images, capsys):
    names = ["fox", "dog", "ant", "gnu", "bee", "elk", "cat"]
    folder, shown = classifier(names), images(name for name in CLASSES if name != "elk")
    assert main([str(folder), str(shown), *HERE]) == 0
    assert capsys.readouterr().out == by_hand(folder, shown, {name: names.index(name) for name in names})


def test_other_folders_are_matched_by_order(classifier, images, capsys):
    others = {name: f"n0{number}" for number, name in enumerate(NAMES)}
    folder, shown = classifier(NAMES), images(others[name] for name in CLASSES)
    assert main([str(folder), str(shown), *HERE]) == 0
    assert capsys.readouterr().out == by_hand(folder, shown, {others[n]: i for i, n in enumerate(NAMES)})


def test_model_of_fewer_than_five_classes(classifier, images, capsys):
    assert main([str(classifier(NAMES[:2])), str(images(["ant", "bee", "bee"])), *HERE]) == 0
    assert "top-5 100.000 %" in capsys.readouterr().out


def test_half_precision_gives_nearly_the_same(classifier, images, capsys):
    folder, shown = classifier(), images(CLASSES)
    losses = []
    for options in ([], ["--bf16"]):
        assert main([str(folder), str(shown), *HERE, *options]) == 0
        losses.append(float(re.search(r"loss ([\d.]+)", capsys.readouterr().out)[1]))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def refused(capsys, folder, images, *options):
    """Return the line on standard error of an evaluation that fails, without the progress bar."""
    assert main([str(folder), str(images), *HERE, *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    (line,) = [line for line in printed.err.splitlines() if line.startswith("evaluate: ")]
    return line


def test_classes_that_cannot_be_matched_are_refused(classifier, images, capsys):
    line = refused(capsys, classifier(), images(["ant", "bee", "cow"]))
    assert "3 classes" in line and "the model 7" in line and "'cow'" in line


def labels(names):
    return MAEConfig(id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)})


def test_known_names_are_matched_by_name_without_a_log_entry(caplog):
    caplog.set_level(logging.INFO, "examples")
    assert match(["ant", "bee", "cat"], labels(["cat", "dog", "bee", "ant"])).tolist() == [3, 2, 0]
    assert match(["ant", "bee"], labels(["bee", "ant"])).tolist() == [1, 0]
    assert caplog.records == []


def test_as_many_names_of_which_none_is_known_are_matched_by_order_with_a_log_entry(caplog):
    caplog.set_level(logging.INFO, "examples")
    assert match(["n01", "n02", "n03"], labels(["dog", "bee", "ant"])).tolist() == [0, 1, 2]
    (record,) = caplog.records
    assert record.message.endswith("matched in order, n01 as dog ...")


@pytest.mark.parametrize(
    ("names", "unknown"),
    [
        (["ant", "cow", "dog"], "cow"),  # as many as the labels
        (["ant", "cow"], "cow"),
        (["n01", "n02"], "n01"),
        (["n01", "n02", "n03", "n04"], "n01"),
    ],
)
def test_names_that_are_known_in_part_or_not_as_many_are_refused(names, unknown):
    with pytest.raises(ValueError, match=f"have {len(names)} classes, the model 3, .*such as '{unknown}'"):
        match(names, labels(["ant", "bee", "dog"]))


def test_images_without_class_folders_are_refused(classifier, images, capsys):
    assert "not in one folder per class" in refused(capsys, classifier(), images(["ant"]) / "ant")


def test_model_without_a_head_is_refused(fresh, images, tmp_path, capsys):
    fresh().save_pretrained(tmp_path / "mae")
    assert "MAEForPreTraining" in refused(capsys, tmp_path / "mae", images(["ant"]))
    MAEConfig().save_pretrained(tmp_path / "config")
    assert "no class" in refused(capsys, tmp_path / "config", images(["ant"]))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_broken_image_is_named(classifier, images, capsys, workers):
    folder, shown = classifier(), images(CLASSES)
    (shown / "ant" / "07.png").write_text("text")
    assert str(shown / "ant" / "07.png") in refused(capsys, folder, shown, "--workers", workers)


def test_missing_folder_is_named(classifier, images, tmp_path, capsys):
    assert str(tmp_path / "nothing") in refused(capsys, classifier(), tmp_path / "nothing")
    assert str(tmp_path / "nothing") in refused(capsys, tmp_path / "nothing", images(["ant"]))


def test_command_prints_only_its_line_on_standard_output(classifier, images):
    folder, shown = classifier(), images(CLASSES)
    options = ["--batch-size", "5", "--workers", "2", *CPU]
    done = run_python(ROOT / "examples" / "evaluate.py", folder, shown, *options)
    assert done.stdout == by_hand(folder, shown, {name: number for number, name in enumerate(NAMES)})
    assert "5/5" in done.stderr and "Traceback" not in done.stderr
