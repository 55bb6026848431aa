"""examples/images.py: the images of a folder, their order, their random transforms, and the evaluation transform."""

import logging
import os
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mae_hf import MAEConfig
from mae_hf.image_processor import image_processor

pytest.importorskip("datasets")  # comes with what `make test-all` installs
from images import ImageFolder, crop_and_flip, evaluation_transform, read_image

pytestmark = pytest.mark.heavy


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes small images of one colour each; by default twelve without classes."""

    def make(*names, root="images"):
        for number, name in enumerate(names or [f"{number:02}.png" for number in range(12)]):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (3, 2), (number, 100, 200)).save(path)
        return str(tmp_path / root)

    return make


def draw(image, rng):
    """Transform an image to the red value of its first pixel, and a random number."""
    return torch.tensor([image.getpixel((0, 0))[0], rng.random()], dtype=torch.float64)


def visit(dataset, epochs=(0, 1), **options):
    """Return the samples of a loader in each epoch: index, epoch, pixels."""
    loader, seen = DataLoader(dataset, 5, collate_fn=list, **options), []
    for epoch in epochs:
        dataset.set_epoch(epoch)
        samples = [sample for batch in loader for sample in batch]
        seen.append([(int(s["index"]), s["epoch"], *s["pixel_values"].tolist()) for s in samples])
    return seen


# order and randomness


@pytest.mark.parametrize(("workers", "persistent"), [(1, True), (2, False), (2, True)])
def test_samples_are_the_same_for_any_number_of_workers(folder, workers, persistent):
    alone = visit(ImageFolder(folder(), draw, seed=3, train=True))
    dataset = ImageFolder(folder(), draw, seed=3, train=True)
    assert visit(dataset, num_workers=workers, persistent_workers=persistent) == alone


def test_sample_depends_only_on_seed_epoch_and_index(folder):
    first, second = visit(ImageFolder(folder(), draw, seed=1, train=True), epochs=(0, 7))
    dataset = ImageFolder(folder(), draw, seed=1, train=True)
    dataset.set_epoch(7)
    position = 5
    assert (int(dataset[position]["index"]), 7, *dataset[position]["pixel_values"].tolist()) == second[position]
    assert visit(dataset, epochs=(7, 0, 7)) == [second, first, second]
    (other,) = visit(ImageFolder(folder(), draw, seed=2, train=True), epochs=(0,))
    numbers = [{random for *_, random in seen} for seen in (first, second, other)]
    assert len(set.union(*numbers)) == 36


def test_order_is_a_permutation_that_differs_between_epochs_and_seeds(folder):
    seen = visit(ImageFolder(folder(), draw, seed=1, train=True), epochs=range(4))
    seen += visit(ImageFolder(folder(), draw, seed=2, train=True), epochs=range(4))
    orders = [tuple(index for index, *_ in epoch) for epoch in seen]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len(set(orders)) == 8
    assert all(colour == index for epoch in seen for index, _, colour, _ in epoch)


def test_without_training_order_and_samples_are_the_same_in_every_epoch(folder):
    first, second = visit(ImageFolder(folder(), draw, seed=1))
    assert first == second
    assert [(index, epoch) for index, epoch, *_ in first] == [(index, None) for index in range(12)]


# the images of a folder


def test_class_folders_give_labels_in_alphabetical_order(folder):
    dataset = ImageFolder(folder("dog/0.png", "ant/1.png", "cat/2.png", "ant/3.png", "dog/4.png"), draw)
    assert dataset.classes == ["ant", "cat", "dog"]
    found = {
        int(sample["pixel_values"][0]): dataset.classes[sample["labels"]]
        for sample in map(dataset.__getitem__, range(5))
    }
    assert found == {0: "dog", 1: "ant", 2: "cat", 3: "ant", 4: "dog"}


def test_flat_folder_has_no_labels(folder):
    dataset = ImageFolder(folder(), draw)
    assert dataset.classes == []
    assert dataset[0].keys() == {"pixel_values", "index", "epoch"}


@pytest.mark.parametrize("root", ["test", "val-1", "im[1 x", "a*b", "train"])
def test_no_folder_name_loses_an_image(folder, root):
    names = ["test/0.png", "val-1/1.png", "im[1 x/2.png", "train/3.png", "dev-test/4.png", "plain/test.png"]
    dataset = ImageFolder(folder(*names, root=root), draw)
    assert len(dataset) == 6
    assert dataset.classes == sorted(["test", "val-1", "im[1 x", "train", "dev-test", "plain"])


def test_class_is_the_top_level_folder(folder):
    dataset = ImageFolder(folder("a/x/1.png", "b/x/2.png", "b/y/z/3.png", "b/4.png"), draw)
    assert dataset.classes == ["a", "b"]
    assert sorted((int(s["pixel_values"][0]), s["labels"]) for s in map(dataset.__getitem__, range(4))) == [
        (0, 0),
        (1, 1),
        (2, 1),
        (3, 1),
    ]


def test_image_outside_of_the_class_folders_leaves_no_classes(folder):
    dataset = ImageFolder(folder("a/0.png", "b/1.png", "stray.png"), draw)
    assert len(dataset) == 3 and dataset.classes == [] and "labels" not in dataset[0]


def test_links_to_folders_and_images_are_followed(folder):
    root, other = folder("ant/0.png"), folder("0.png", "1.png", root="elsewhere")
    os.symlink(other, f"{root}/bee")
    os.symlink(f"{other}/1.png", f"{root}/ant/linked.png")
    dataset = ImageFolder(root, draw)
    assert dataset.classes == ["ant", "bee"]
    assert [dataset[place]["labels"] for place in range(len(dataset))] == [0, 0, 1, 1]


def test_other_files_are_ignored(folder):
    root = folder("a/1.png", "b/2.JPEG", "b/3.PNG")
    for name in ("a/1.png.txt", "a/1.jpg.json", "a/1", "b/.hidden.png", "metadata.csv", "b/metadata.jsonl"):
        with open(f"{root}/{name}", "w") as file:
            file.write("file_name,label\na/1.png,b\n")
    folder(".cache/4.png", "b/.thumbnails/5.png")
    dataset = ImageFolder(root, draw)
    assert dataset.classes == ["a", "b"]
    assert [os.path.relpath(path, root) for path in dataset.files["path"]] == ["a/1.png", "b/2.JPEG", "b/3.PNG"]
    assert [dataset[place]["labels"] for place in range(3)] == [0, 1, 1]
    assert dataset[0].keys() == {"pixel_values", "index", "epoch", "labels"}


def test_position_after_the_last_image_is_an_error(folder):
    for train in (True, False):
        dataset = ImageFolder(folder(), draw, train=train)
        with pytest.raises(IndexError, match="position 12 is out of range: .* has 12 images"):
            dataset[len(dataset)]


def test_broken_image_is_skipped_and_named_in_training(folder, caplog):
    root = folder("a/0.png", "a/1.png", "b/2.png", "b/3.png")
    with open(f"{root}/a/1.png", "r+b") as file:
        file.truncate(50)
    (seen,) = visit(ImageFolder(root, draw, train=True), epochs=(0,))
    assert sorted((index, colour) for index, _, colour, _ in seen) == [(0, 0), (2, 2), (2, 2), (3, 3)]
    assert "a/1.png" in caplog.text and "skipped" in caplog.text
    dataset = ImageFolder(root, draw, train=True)
    labels = {int(sample["index"]): sample["labels"] for sample in map(dataset.__getitem__, range(4))}
    assert labels == {0: 0, 2: 1, 3: 1}


def test_last_image_that_is_broken_is_replaced_by_the_first(folder):
    root = folder("a/0.png", "b/1.png")
    with open(f"{root}/b/1.png", "wb"):
        pass
    dataset = ImageFolder(root, draw, train=True)
    assert [(int(dataset[place]["index"]), dataset[place]["labels"]) for place in (0, 1)] == [(0, 0), (0, 0)]


def test_broken_image_is_an_error_in_evaluation(folder):
    root = folder()
    with open(f"{root}/03.png", "r+b") as file:
        file.truncate(50)
    dataset = ImageFolder(root, draw)
    assert len(dataset) == 12
    with pytest.raises(ValueError, match=r"03\.png"):
        dataset[3]


def test_text_files_are_skipped_with_a_log_entry(folder, caplog):
    caplog.set_level(logging.INFO, "examples")
    root = folder("a/0.png", "b/1.png")
    for name in ("README.md", "a/list.txt"):
        with open(f"{root}/{name}", "w") as file:
            file.write("text")
    dataset = ImageFolder(root, draw)
    assert len(dataset) == 2 and dataset.classes == ["a", "b"]
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("skipped 2 files in") and ("README.md" in line or "list.txt" in line)


def test_link_to_a_parent_folder_repeats_no_image(folder):
    root = folder("a/0.png", "b/1.png")
    os.symlink(root, f"{root}/a/back")
    assert len(ImageFolder(root, draw)) == 2


def test_folder_without_an_image_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("text")
    for name in ("empty", "missing", "text"):
        with pytest.raises(ValueError, match=str(tmp_path / name)):
            ImageFolder(str(tmp_path / name), draw)


def test_training_on_only_broken_images_is_an_error(folder, caplog):
    root = folder("0.png", "1.png")
    for name in ("0.png", "1.png"):
        with open(f"{root}/{name}", "w") as file:
            file.write("text")
    with pytest.raises(ValueError, match=f"2 images in a row in {root} cannot be read"):
        ImageFolder(root, draw, train=True)[0]
    assert f"{root}/0.png" in caplog.text and f"{root}/1.png" in caplog.text


@pytest.mark.parametrize("broken", [2, 3])
def test_training_stops_after_many_broken_images_in_a_row(folder, monkeypatch, broken):
    monkeypatch.setattr("images.REPLACEMENTS", 3)
    dataset = ImageFolder(folder(), draw, train=True)
    for index in range(4, 4 + broken):
        with open(dataset.files[index]["path"], "w") as file:
            file.write("text")
    place = dataset._shuffled(0).tolist().index(4)
    if broken < 3:
        assert int(dataset[place]["index"]) == 6
    else:
        with pytest.raises(ValueError, match="3 images in a row in .* cannot be read"):
            dataset[place]


@pytest.mark.parametrize("train", [False, True])
def test_deleted_image_is_an_error(folder, train):
    root = folder("0.png", "1.png")
    dataset = ImageFolder(root, draw, train=train)
    os.remove(f"{root}/1.png")
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        [dataset[place] for place in (0, 1)]


# how an image is read


def test_image_of_16_bits_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png has more than 8 bits"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("1", "png"), ("P", "png"), ("P", "gif"), ("CMYK", "jpg"), ("RGBA", "png")]
)
def test_image_of_any_mode_is_read_as_rgb(tmp_path, mode, suffix):
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    Image.fromarray(values if mode == "RGBA" else values[..., :3]).convert(mode).save(
        path := tmp_path / f"image.{suffix}"
    )
    with Image.open(path) as opened:
        assert opened.mode in (mode, "RGB")
        expected = opened.convert("RGB")
    found = read_image(path)
    assert found.mode == "RGB" and found.tobytes() == expected.tobytes()


def test_image_is_not_turned_by_its_exif_data(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (8, 4)


# training


def crops(flip=0.0, min_crop=1.0, count=200):
    """Crop an image of 100 x 100 pixels with `count` seeds; red is twice the column, green twice the row."""
    row, column = np.indices((100, 100), np.uint8) * 2
    image = Image.fromarray(np.stack([column, row, row], 2))
    drawn = [crop_and_flip(image, Random(seed), (40, 50), min_crop, flip) for seed in range(count)]
    assert {crop.size for crop in drawn} == {(50, 40)}
    return [np.asarray(crop, int) for crop in drawn]


@pytest.mark.parametrize(("flip", "least", "most"), [(0, 0, 0), (0.5, 75, 125), (1, 200, 200)])
def test_images_are_flipped_with_the_given_probability(flip, least, most):
    drawn = crops(flip)
    assert least <= sum(crop[20, 0, 0] > crop[20, -1, 0] for crop in drawn) <= most
    assert all(crop[0, 25, 1] < crop[-1, 25, 1] for crop in drawn)  # upright


@pytest.mark.parametrize("least", [0.08, 0.5])
def test_crops_have_the_minimum_area(least):
    drawn = crops(0.5, least, 500)
    widths = [abs(crop[20, -1, 0] - crop[20, 0, 0]) / 2 * 50 / 49 for crop in drawn]
    heights = [(crop[-1, 25, 1] - crop[0, 25, 1]) / 2 * 40 / 39 for crop in drawn]
    areas = [width * height / 100**2 for width, height in zip(widths, heights, strict=True)]
    assert least - 0.02 < min(areas) < least + 0.03 and max(areas) > 0.9


# evaluation


def photo(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def official(image, size):
    """Resize, CenterCrop, ToTensor and Normalize of torchvision."""
    width, height = image.size
    short = 256 if size == 224 else size
    new = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    resized = np.asarray(image.resize(new, Image.Resampling.BICUBIC), np.float64)
    top, left = round((new[1] - size) / 2.0), round((new[0] - size) / 2.0)
    pixels = resized[top : top + size, left : left + size] / 255
    return torch.tensor(((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1))


def margins(image, size, short):
    """Return the margin in pixels of the longer side after resizing."""
    return int(short * max(image.size) / min(image.size)) - size


# width, height; at 224 pixels, the margins of the longer side are 0 to 3 modulo 4
SHAPES = [(300, 300), (256, 257), (257, 256), (256, 258), (256, 259), (259, 256), (300, 401), (90, 55)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [224, 448])
def test_evaluation_transform_is_the_official_one(shape, size):
    image = photo(*shape)
    found = evaluation_transform(image, None, (size, size))
    assert found.shape == (3, size, size) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), official(image, size), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 300), (256, 320), (320, 256), (128, 191)])
def test_image_processor_gives_the_same_where_the_margin_is_even(shape):
    image = photo(*shape)
    assert margins(image, 224, 256) % 2 == 0
    processed = image_processor(MAEConfig())(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(evaluation_transform(image, None, (224, 224)), processed, rtol=0, atol=1e-5)
