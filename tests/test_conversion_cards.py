from pathlib import Path

import torch
from huggingface_hub import ModelCard

from mae_hf import MAEConfig
from mae_hf.conversion import Converted
from mae_hf.conversion.cards import folder_card
from mae_hf.conversion.layouts import LAYOUTS
from mae_hf.conversion.releases import RELEASES
from mae_hf.conversion.source import Source

WEIGHTS = {"decoder.mask_token": torch.zeros(1, 1, 64)}


def card(layout="mae_hf", config=None, weights=WEIGHTS, kind="pretraining", checksummed=True, **changes):
    layout, path = LAYOUTS[layout], Path("a.pth")
    source = Source(
        state_dict=weights, path=path, name="a.pth", layout=LAYOUTS["official"], kind=kind, checksummed=checksummed
    )
    facts = {"md5s": {"a.pth": "0" * 32}, "release": None, "license": "other", "norm_pix_loss_from": "the option"}
    facts |= {"config": config or MAEConfig(norm_pix_loss=True), "dtype": None, "num_tensors": len(weights)}
    done = Converted(source=source, layout=layout, kind=layout.kind_written(kind), **{**facts, **changes})
    return folder_card(done, weights)


def valid(made, tmp_path):
    """What huggingface_hub's own classes read from the card as it is written."""
    made.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.to_dict() == made.data.to_dict()
    return data


def test_metadata_is_what_the_hub_knows(tmp_path):
    data = valid(card(), tmp_path)
    assert (data.license, data.library_name, data.pipeline_tag) == ("other", "transformers", "image-feature-extraction")
    assert "masked-autoencoder" in data.tags and data.datasets is None and data.eval_results is None
    assert valid(card(kind="finetuned", weights={}), tmp_path).pipeline_tag == "image-classification"
    assert valid(card("timm", weights={}), tmp_path).library_name == "timm"
    assert valid(card(release=RELEASES[3], license="cc-by-nc-4.0"), tmp_path).datasets == ["imagenet-1k"]


def test_results_stand_only_where_the_md5_proves_the_file(tmp_path):
    release = next(release for release in RELEASES if release.name == "mae_finetuned_vit_base")
    proven = {"kind": "finetuned", "weights": {}, "release": release, "md5s": {"a.pth": "1b25e9" + "0" * 26}}
    made = card(**proven)
    results = valid(made, tmp_path).eval_results
    assert [(result.metric_type, result.metric_value) for result in results] == [
        ("accuracy", 83.664),
        ("accuracy", 96.53),
    ]
    assert "top-1 83.664 %" in made.text
    for change in ({"md5s": {"a.pth": "0" * 32}}, {"dtype": torch.float16}, {"release": None}):
        made = card(**{**proven, **change})
        assert valid(made, tmp_path).eval_results is None and "top-1" not in made.text


def test_name_of_a_release_with_another_md5_claims_no_data_and_says_so(tmp_path):
    made = card(kind="encoder", weights={}, release=RELEASES[0])
    assert valid(made, tmp_path).datasets is None and "its md5 is not the published one" in made.text
    proven = card(kind="encoder", weights={}, release=RELEASES[0], md5s={"a.pth": "8cad7c" + "0" * 26})
    assert valid(proven, tmp_path).datasets == ["imagenet-1k"] and "repository, by its md5 |" in proven.text


def test_card_says_what_the_weights_cannot_do():
    encoder = card(kind="encoder", weights={}).text
    assert "no pixels: it has no decoder" in encoder and "raw pixels (`norm" not in encoder
    assert "encoder-only weights" in encoder and "MAEModel.from_pretrained" in encoder
    normalised = card().text
    assert "without their brightness and contrast" in normalised and "normalised pixels" in normalised
    assert "damage cannot be detected" in card(checksummed=False).text
    classifier = card(kind="linprobe", weights={}, config=MAEConfig(num_labels=1000)).text
    assert "does not reconstruct" in classifier and "names of ImageNet-1k if the source has none" in classifier
    assert "MAEForImageClassification.from_pretrained" in classifier
    assert "Loading in timm is not tested" in card("timm", weights={}).text
    assert "from transformers import ViTMAEForPreTraining" in card("vit_mae").text


def test_card_of_a_cast_folder_does_not_promise_that_verify_passes():
    assert "compared bit for bit" in card().text
    cast = card(dtype=torch.bfloat16).text
    assert "cast to torch.bfloat16" in cast and "compared bit for bit" not in cast


def test_card_names_every_file_with_its_md5():
    md5s = {"model-00001-of-00002.safetensors": "1" * 32, "model-00002-of-00002.safetensors": "2" * 32}
    text = card(md5s=md5s).text
    assert all(f"| md5 of `{name}` | `{md5}` |" in text for name, md5 in md5s.items())
