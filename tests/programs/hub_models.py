"""Models to the Hub and back: `hub_models.py COMMAND ARGUMENTS`; a command is a function here without `_`.

The client reads HF_ENDPOINT when it is imported, so it needs a process of its own.
"""

import contextlib
import io
import sys
from pathlib import Path

import torch
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # this import needs no torchvision

from mae_hf import (
    MAEBackbone,
    MAEConfig,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
    load_vit_mae,
)
from mae_hf.cli import main
from mae_hf.remote_code import AUTO_MAP

CHELSEA = str(Path(__file__).resolve().parents[2] / "examples" / "demo" / "chelsea.png")
CLASSES = {"encoder": MAEModel, "pretraining": MAEForPreTraining, "classifier": MAEForImageClassification}
AUTO_CLASSES = {
    "encoder": AutoModel,
    "pretraining": AutoModelForPreTraining,
    "classifier": AutoModelForImageClassification,
}


def _settings(config):
    return config.to_dict() | {"_name_or_path": None, "dtype": None}


def _same(found, expected):
    assert type(found) is type(expected)
    found, expected = found.state_dict(), expected.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def _refused(error_class, call, *arguments, **options):
    """The message of the exception that a call raises."""
    try:
        call(*arguments, **options)
    except error_class as error:
        return str(error)
    raise AssertionError("the call was not refused")


def _reconstruct(model, output):
    """Exit status and standard error of `mae-hf reconstruct`."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = main(["reconstruct", CHELSEA, "--model", model, "--output", output])
    return status, stderr.getvalue()


def push(folders):
    for name, model_class in CLASSES.items():
        folder = f"{folders}/{name}"
        model_class.from_pretrained(folder).push_to_hub(f"someone/{name}", max_shard_size="100KB", private=True)
        AutoImageProcessor.from_pretrained(folder).push_to_hub(f"someone/{name}")


def load(folders, figure):
    for name, model_class in CLASSES.items():
        of_hub, of_folder = f"someone/{name}", f"{folders}/{name}"
        expected = model_class.from_pretrained(of_folder)
        assert _same(model_class.from_pretrained(of_hub), expected)
        assert _same(AUTO_CLASSES[name].from_pretrained(of_hub), expected)
        assert _settings(AutoConfig.from_pretrained(of_hub)) == _settings(expected.config)
        found, expected = map(AutoImageProcessor.from_pretrained, (of_hub, of_folder))
        assert found.to_dict() == expected.to_dict()
    for task, name in {"image-classification": "classifier", "image-feature-extraction": "pretraining"}.items():
        found, expected = (pipeline(task, model=f"{where}/{name}")(CHELSEA) for where in ("someone", folders))
        assert found == expected
    assert _reconstruct("someone/pretraining", figure) == (0, "")
    status, stderr = _reconstruct("someone/nothing", "nothing.png")
    assert status == 1 and stderr.count("\n") == 1 and "someone/nothing" in stderr, stderr


def load_revisions(older, newer):
    older, newer = map(MAEForPreTraining.from_pretrained, (older, newer))
    for load in (MAEForPreTraining.from_pretrained, AutoModelForPreTraining.from_pretrained):
        assert _same(load("someone/model"), newer)
        assert _same(load("someone/model", revision="main"), newer)
        assert _same(load("someone/model", revision="2" * 40), newer)
        found = load("someone/model", revision="1" * 40)
        assert _same(found, older)
        assert _settings(found.config) == _settings(older.config) != _settings(newer.config)
    assert _same(AutoModel.from_pretrained("someone/model", revision="1" * 40), older.mae)
    assert _same(MAEForPreTraining.from_pretrained("someone/model", image_size=32, revision="1" * 40), older)
    assert _same(MAEForPreTraining.from_pretrained("someone/model", image_size=(64, 64)), newer)
    text = _refused(ValueError, MAEForPreTraining.from_pretrained, "someone/model", image_size=64, revision="1" * 40)
    assert "the checkpoint was made for image size 32, not 64" in text, text
    text = _refused(ValueError, AutoModel.from_pretrained, "someone/model", image_size=32)
    assert "the checkpoint was made for image size 64, not 32" in text, text
    text = _refused(OSError, MAEForPreTraining.from_pretrained, "someone/model", revision="3" * 40)
    assert "is not a valid git identifier" in text, text


def load_private(folders, converted):
    status, stderr = _reconstruct("someone/pretraining", "nothing.png")
    assert status == 1 and stderr.count("\n") == 1, stderr
    assert "someone/pretraining is not a local folder and is not a valid model identifier" in stderr, stderr
    for name, model_class in CLASSES.items():
        expected, repo = model_class.from_pretrained(f"{folders}/{name}"), f"someone/{name}"
        for loader in (model_class, AUTO_CLASSES[name], AutoImageProcessor):
            text = _refused(OSError, loader.from_pretrained, repo)
            assert repo in text and "private" in text and "token" in text, text
        text = _refused(OSError, model_class.from_pretrained, repo, image_size=32)
        assert "If this is a private repository, make sure to pass a token" in text, text
        assert repo in _refused(OSError, model_class.from_pretrained, repo, token="hf_wrong")
        assert _same(model_class.from_pretrained(repo, token="hf_test", image_size=32), expected)
        assert _same(AUTO_CLASSES[name].from_pretrained(repo, token="hf_test"), expected)
        text = _refused(ValueError, model_class.from_pretrained, repo, token="hf_test", image_size=64)
        assert "the checkpoint was made for image size 32, not 64" in text, text
    assert "someone/vit_mae" in _refused(OSError, load_vit_mae, "someone/vit_mae")
    found = load_vit_mae("someone/vit_mae", token="hf_test", revision="1" * 40)
    assert _same(found, MAEForPreTraining.from_pretrained(converted))
    extract = pipeline("image-feature-extraction", model="someone/encoder", token="hf_test")
    assert extract(CHELSEA) == pipeline("image-feature-extraction", model=f"{folders}/encoder")(CHELSEA)


def push_with_code(folders):
    torch.manual_seed(0)
    for model_class in (MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone):
        config = MAEConfig.from_pretrained(f"{folders}/pretraining", pooling="cls", out_indices=[1])
        config.auto_map = AUTO_MAP
        model_class(config).push_to_hub(f"someone/{model_class.__name__}")


def load_backbone():
    backbone = AutoBackbone.from_pretrained("someone/MAEForPreTraining", out_indices=[0, 2])
    assert type(backbone) is MAEBackbone and backbone.out_features == ["stem", "stage2"]
    assert _same(backbone.mae, MAEModel.from_pretrained("someone/MAEForPreTraining"))


def download(repo_id, folder):
    MAEForPreTraining.from_pretrained(repo_id).save_pretrained(folder)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
