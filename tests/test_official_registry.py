import pytest
import torch

from mae_hf import MAEConfig, MaskedAutoencoder, create_model, list_models
from mae_hf.configuration_mae import PRESETS
from mae_hf.official import models_mae, models_vit
from mae_hf.official.models_vit import VisionTransformer
from tests.helpers.official import TINY_MAE

ENCODER = ("patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
DECODER = tuple(f"decoder_{name}" for name in ENCODER[1:])


def names_of(size):
    """The short and the long name of a pretraining model, and the name of a classifier."""
    config = MAEConfig.from_preset(size)
    name = f"vit_{size}_patch{config.patch_size}"
    return f"mae_{name}", f"mae_{name}_dec{config.decoder_hidden_size}d{config.decoder_num_hidden_layers}b", name


@pytest.mark.parametrize("size", PRESETS)
def test_every_size_has_official_names_and_the_sizes_of_its_preset(size):
    expected = MAEConfig.from_preset(size)
    *pretraining, classifier = names_of(size)
    with torch.device("meta"):
        for name in pretraining:
            model = create_model(name)
            assert isinstance(model, MaskedAutoencoder) and name in models_mae.__dict__
            assert all(getattr(model.config, field) == getattr(expected, field) for field in ENCODER + DECODER)
        model = create_model(classifier)
        assert isinstance(model, VisionTransformer) and classifier in models_vit.__dict__
        assert all(getattr(model.config, field) == getattr(expected, field) for field in ENCODER)


def test_models_are_listed_once_each():
    assert sorted(list_models()) == sorted(name for size in PRESETS for name in names_of(size))
    for module, prefix in ((models_mae, "mae_vit_"), (models_vit, "vit_")):
        found = {name for name in vars(module) if name.startswith(prefix)}
        assert found == {name for name in list_models() if name.startswith(prefix)}


@pytest.mark.parametrize("name", list_models())
def test_every_argument_can_be_overridden(name):
    sizes = {key: value for key, value in TINY_MAE.items() if name.startswith("mae_") or "decoder" not in key}
    config = create_model(name, **sizes, mlp_ratio=2.0).config
    assert (config.image_size, config.patch_size, config.hidden_size, config.intermediate_size) == (32, 8, 64, 128)


def test_unknown_model_is_refused_with_similar_names():
    with pytest.raises(ValueError, match="unknown model 'mae_vit_base_patch14'; did you mean 'mae_vit_base_patch16'"):
        create_model("mae_vit_base_patch14")
    with pytest.raises(TypeError, match="unexpected keyword argument 'image_size'"):
        create_model("mae_vit_base_patch16", image_size=32)
