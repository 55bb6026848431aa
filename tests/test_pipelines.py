"""The pipelines of transformers, from a folder and a photograph to scores and features."""

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # this import needs no torchvision

from mae_hf import MAEForImageClassification, MAEForPreTraining, MAEModel
from mae_hf.cli import main
from mae_hf.image_processor import image_processor
from tests.helpers import CHELSEA, HEAD_OPTIONS

PHOTOGRAPH = str(CHELSEA)
ANIMALS = {0: "cat", 1: "dog", 2: "fish", 3: "owl", 4: "bee", 5: "ant", 6: "elk"}
TASKS = {"image-feature-extraction": MAEModel, "image-classification": MAEForImageClassification}


@pytest.fixture
def save(tiny_config, tmp_path):
    """Saves a tiny model with its processor; a head gets weights large enough to tell the classes apart."""

    def save(model_class, **changes):
        torch.manual_seed(0)
        model = model_class(tiny_config(**changes))
        if isinstance(model, MAEForImageClassification):
            torch.nn.init.normal_(model.head.weight)
        folder = tmp_path / model_class.__name__
        model.save_pretrained(folder)
        image_processor(model.config).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def convert(reference, tmp_path, capsys):
    """Converts an official checkpoint of the tiny model with the command line."""

    def convert(name, *options):
        source, folder = reference / "tiny" / f"{name}.pth", tmp_path / name
        assert main(["convert", str(source), str(folder), *HEAD_OPTIONS[:2], *options]) == 0
        capsys.readouterr()
        return str(folder)

    return convert


@pytest.fixture
def photographs(tmp_path):
    """Files of a photograph, and of a rotated part of it in another size."""
    with Image.open(PHOTOGRAPH) as image:
        image.crop((100, 20, 300, 280)).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "part.jpg")
    return [PHOTOGRAPH, str(tmp_path / "part.jpg")]


def outputs(model_class, folder, path):
    """The outputs of the model in a folder for an image file, step by step."""
    processor, model = AutoImageProcessor.from_pretrained(folder), model_class.from_pretrained(folder)
    with Image.open(path) as image, torch.no_grad():
        return model(**processor(image.convert("RGB"), return_tensors="pt"))


def scores(answer):
    """Scores by label, best first."""
    return {said["label"]: said["score"] for said in answer}


def test_classification_is_processor_and_model(save, photographs):
    folder = save(MAEForImageClassification, id2label=ANIMALS)
    classify = pipeline("image-classification", model=folder)
    for path in photographs:
        logits = outputs(MAEForImageClassification, folder, path).logits[0]
        found = scores(classify(path, function_to_apply="none", top_k=7))
        assert found == dict(zip(ANIMALS.values(), logits.tolist(), strict=True))  # to the bit
        assert list(found.values()) == sorted(found.values(), reverse=True)
        found, wanted = scores(classify(path, top_k=7)), logits.softmax(dim=0).tolist()
        assert found == pytest.approx(dict(zip(ANIMALS.values(), wanted, strict=True)), rel=1e-5)
        assert sum(found.values()) == pytest.approx(1) and max(found.values()) > 0.2


def test_classification_of_paths_images_lists_and_batches(save, photographs):
    classify = pipeline("image-classification", model=save(MAEForImageClassification, id2label=ANIMALS))
    wanted = [classify(path) for path in photographs]
    assert wanted[0] != wanted[1] and [len(answer) for answer in wanted] == [5, 5]
    assert [classify(path) for path in photographs] == wanted  # deterministic
    assert classify(photographs) == wanted
    with Image.open(photographs[0]) as first, Image.open(photographs[1]) as second:
        assert classify(first) == wanted[0] and classify([first, second]) == wanted
    assert classify(photographs, top_k=2) == [answer[:2] for answer in wanted]
    for found, answer in zip(classify(photographs * 2, batch_size=2), wanted * 2, strict=True):
        assert scores(found) == pytest.approx(scores(answer), rel=1e-5) and list(scores(found)) == list(scores(answer))


def test_classification_with_a_converted_checkpoint(convert):
    """Ten classes without names."""
    for name in ("finetuned", "finetuned_cls", "linprobe"):
        folder = convert(name)
        found = scores(pipeline("image-classification", model=folder)(PHOTOGRAPH, top_k=10))
        assert set(found) == {f"LABEL_{n}" for n in range(10)} and sum(found.values()) == pytest.approx(1)
        logits = outputs(MAEForImageClassification, folder, PHOTOGRAPH).logits[0]
        wanted = {f"LABEL_{n}": score for n, score in enumerate(logits.softmax(dim=0).tolist())}
        assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_features_are_processor_and_model(save, photographs, pooling):
    folder = save(MAEModel, pooling=pooling)
    extract = pipeline("image-feature-extraction", model=folder)
    for path in photographs:
        wanted = outputs(MAEModel, folder, path)
        assert torch.equal(extract(path, return_tensors=True), wanted.last_hidden_state)
        assert extract(path) == wanted.last_hidden_state.tolist()
        assert torch.equal(extract(path, return_tensors=True, pool=True), wanted.pooler_output)
        assert extract(path, pool=True) == wanted.pooler_output.tolist()
        tokens = wanted.last_hidden_state[:, 1:].mean(dim=1) if pooling == "mean" else wanted.last_hidden_state[:, 0]
        assert torch.equal(wanted.pooler_output, tokens)


def test_features_of_paths_images_lists_and_batches(save, photographs):
    extract = pipeline("image-feature-extraction", model=save(MAEModel), pool=True)
    wanted = [extract(path) for path in photographs]
    assert wanted[0] != wanted[1] and [len(features[0]) for features in wanted] == [64, 64]
    assert [extract(path) for path in photographs] == wanted  # deterministic
    assert extract(photographs) == wanted
    with Image.open(photographs[0]) as first, Image.open(photographs[1]) as second:
        assert extract(first) == wanted[0] and extract([first, second]) == wanted
    batched = extract(photographs * 2, batch_size=2)
    torch.testing.assert_close(torch.tensor(batched), torch.tensor(wanted * 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("source", ["save", "convert"])
def test_features_of_a_pretraining_folder_are_the_unmasked_ones_of_its_encoder(save, convert, source):
    folder = save(MAEForPreTraining) if source == "save" else convert("full", *HEAD_OPTIONS[2:])
    extract = pipeline("image-feature-extraction", model=folder)
    assert type(extract.model) is MAEModel
    found = extract(PHOTOGRAPH, return_tensors=True)
    assert found.shape == (1, 1 + 16, 64) and torch.equal(found, extract(PHOTOGRAPH, return_tensors=True))
    encoder = MAEForPreTraining.from_pretrained(folder).mae
    with Image.open(PHOTOGRAPH) as image, torch.no_grad():
        wanted = encoder(**AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt"))
    assert torch.equal(found, wanted.last_hidden_state)
    assert torch.equal(extract(PHOTOGRAPH, return_tensors=True, pool=True), wanted.pooler_output)


def test_features_of_a_classifiers_folder(save):
    """A classifier on the class token has the whole encoder; one on the mean of the patches lacks its final norm."""
    folder = save(MAEForImageClassification, pooling="cls", num_labels=3)
    found = pipeline("image-feature-extraction", model=folder)(PHOTOGRAPH, return_tensors=True)
    assert torch.equal(found, outputs(MAEModel, folder, PHOTOGRAPH).last_hidden_state)
    folder = save(MAEForImageClassification, num_labels=3)
    with pytest.warns(UserWarning, match="no norm after the last block"):
        pipeline("image-feature-extraction", model=folder)


def test_pipelines_of_models_in_memory(save, caplog, monkeypatch):
    """Transformers keeps their train or eval mode, and knows which tasks `import mae_hf` registered for a class."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for task, model_class in TASKS.items():
        folder = save(model_class, hidden_dropout_prob=0.5)
        model = model_class.from_pretrained(folder)
        processor = AutoImageProcessor.from_pretrained(folder)
        found = pipeline(task, model=model, image_processor=processor)
        assert found(PHOTOGRAPH) == pipeline(task, model=folder)(PHOTOGRAPH)
        model.train()
        assert found(PHOTOGRAPH) != found(PHOTOGRAPH)
        assert "is not supported" not in caplog.text
        with pytest.raises(Exception, match="Impossible to guess which image processor to use"):
            pipeline(task, model=model)
    pipeline("image-classification", model=MAEModel(model.config), image_processor=processor)
    assert "The model 'MAEModel' is not supported for image-classification" in caplog.text


@pytest.mark.parametrize("task", TASKS)
def test_folder_without_a_processor_is_refused(save, task):
    folder = save(TASKS[task])
    (Path(folder) / "preprocessor_config.json").unlink()
    with pytest.raises(OSError, match="Can't load image processor for"):
        pipeline(task, model=folder)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pipelines_in_half_precision(save, task, dtype):
    folder = save(TASKS[task])
    found, wanted = (pipeline(task, model=folder, dtype=wanted)(PHOTOGRAPH) for wanted in (dtype, torch.float32))
    if task == "image-classification":
        found, wanted = ([scores(answer)[label] for label in sorted(scores(wanted))] for answer in (found, wanted))
    assert found != wanted
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), atol=0.1, rtol=0.05)


def test_features_of_images_of_another_size_take_the_config(save):
    """The pipeline does not pass `interpolate_pos_encoding`: resize the position embeddings once, and save."""
    folder = save(MAEModel)
    large = {"size": {"shortest_edge": 73}, "crop_size": {"height": 64, "width": 64}}
    extract = pipeline("image-feature-extraction", model=folder, image_processor_kwargs=large)
    with pytest.raises(ValueError, match=r"the images have 64x64 pixels, the model expects 32x32: resize them, pass"):
        extract(PHOTOGRAPH)
    model = MAEModel.from_pretrained(folder)
    model.set_image_size(64)
    model.save_pretrained(folder)
    image_processor(model.config).save_pretrained(folder)
    found = pipeline("image-feature-extraction", model=folder)(PHOTOGRAPH, return_tensors=True)
    assert torch.equal(found, outputs(MAEModel, folder, PHOTOGRAPH).last_hidden_state) and found.shape == (1, 65, 64)
