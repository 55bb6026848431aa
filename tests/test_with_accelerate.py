"""Models that accelerate spreads over memory and disk (`device_map`) give bit-identical outputs."""

import pytest
import torch

from mae_hf import MAEForImageClassification, MAEForPreTraining, MAEModel

pytestmark = [
    pytest.mark.heavy,  # needs accelerate
    # accelerate warns about parameters of the model itself, outside its submodules; it places them all the same
    pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules:UserWarning"),
]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
INPUTS = {
    MAEForPreTraining: {"noise": NOISE},
    MAEModel: {},
    MAEForImageClassification: {"labels": torch.tensor([0, 2])},
}
ENCODER = {
    "cls_token": "cpu",
    "pos_embed": "cpu",
    "patch_embed": "disk",
    "encoder.blocks.0": "cpu",
    "encoder.blocks.1": "disk",
    "encoder.norm": "disk",
}
IN_MODEL = {f"mae.{name}": place for name, place in ENCODER.items()}
SPREAD = {
    MAEForPreTraining: {**IN_MODEL, "decoder": "disk"},
    MAEModel: ENCODER,
    MAEForImageClassification: {**IN_MODEL, "fc_norm": "cpu", "head": "disk"},
}
PLACEMENTS = {
    "spread by hand": lambda model_class: {"device_map": SPREAD[model_class]},
    "all on disk": lambda model_class: {"device_map": {"": "disk"}},
    "as memory allows": lambda model_class: {"device_map": "auto", "max_memory": {"cpu": "250KB"}},
    "all in memory": lambda model_class: {"device_map": "auto"},
}


@pytest.fixture
def folder(tiny_config, tmp_path):
    """Saves a tiny model of a class."""

    def make(model_class):
        torch.manual_seed(0)
        model = model_class(tiny_config(num_labels=3))
        if model_class is MAEForImageClassification:
            torch.nn.init.normal_(model.head.weight)
        model.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


@torch.no_grad()
def outputs(model):
    return {key: value for key, value in model(IMAGES, **INPUTS[type(model)]).items() if torch.is_tensor(value)}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("model_class", INPUTS)
def test_model_spread_over_memory_and_disk_gives_the_same_numbers(folder, tmp_path, model_class, placement):
    saved = folder(model_class)
    expected = outputs(model_class.from_pretrained(saved))
    model = model_class.from_pretrained(saved, offload_folder=tmp_path / "disk", **PLACEMENTS[placement](model_class))
    places = {str(place) for place in getattr(model, "hf_device_map", {"": "cpu"}).values()}
    assert ("disk" in places) == (placement != "all in memory")
    assert any(parameter.is_meta for parameter in model.parameters()) == ("disk" in places)
    for _ in range(2):  # what was loaded for the first call was offloaded again
        found = outputs(model)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules:UserWarning")  # on purpose
@pytest.mark.parametrize("model_class", INPUTS)
def test_model_on_disk_is_saved_whole(folder, tmp_path, model_class):
    saved = folder(model_class)
    model = model_class.from_pretrained(saved, device_map={"": "disk"}, offload_folder=tmp_path / "disk")
    model.save_pretrained(tmp_path / "again")
    expected, found = (model_class.from_pretrained(path).state_dict() for path in (saved, tmp_path / "again"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
