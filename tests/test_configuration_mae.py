import pytest
import torch
from transformers import AutoConfig

from mae_hf import MAEConfig, MAEForPreTraining
from mae_hf.configuration_mae import PRESETS
from mae_hf.patch_embed import patchify

SIZES = {  # patch; width, depth, heads and MLP width of encoder and decoder
    "tiny": (16, (192, 12, 3, 768), (128, 8, 4, 512)),
    "small": (16, (384, 12, 6, 1536), (256, 8, 8, 1024)),
    "base": (16, (768, 12, 12, 3072), (512, 8, 16, 2048)),
    "large": (16, (1024, 24, 16, 4096), (512, 8, 16, 2048)),
    "huge": (14, (1280, 32, 16, 5120), (512, 8, 16, 2048)),
}
FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@pytest.mark.parametrize("name", SIZES)
def test_presets_are_the_sizes_of_the_paper_and_two_smaller_ones(name):
    config = MAEConfig.from_preset(name)
    encoder = tuple(getattr(config, field) for field in FIELDS)
    decoder = tuple(getattr(config, f"decoder_{field}") for field in FIELDS)
    assert (config.patch_size, encoder, decoder) == SIZES[name]
    assert (config.layer_norm_eps, config.mask_ratio, config.norm_pix_loss) == (1e-6, 0.75, False)


def test_presets_are_in_order_and_every_field_of_them_is_one_of_the_config():
    assert list(PRESETS) == list(SIZES)
    for fields in PRESETS.values():
        assert fields.items() <= MAEConfig(**fields).to_dict().items()


@pytest.mark.parametrize(("name", "parameters"), [("tiny", 7_259_968), ("small", 28_330_880)])
def test_small_presets_train(name, parameters):
    torch.manual_seed(0)
    model = MAEForPreTraining(MAEConfig.from_preset(name))
    assert model.num_parameters() == parameters
    images = torch.randn(1, 3, 224, 224)
    out = model(images)
    assert out.logits.shape == patchify(images, 16).shape == (1, 196, 768)
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_names_of_the_paper_are_aliases():
    config = MAEConfig(embed_dim=64, depth=2, num_heads=4, img_size=(32, 64), in_chans=1, decoder_embed_dim=32)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 2, 4)
    assert (config.image_size, config.num_channels, config.decoder_hidden_size) == ((32, 64), 1, 32)
    assert config.embed_dim == 64 and config.grid_size == (2, 4)


def test_preset_takes_overrides_under_either_name():
    config = MAEConfig.from_preset("base", embed_dim=384, num_attention_heads=6, norm_pix_loss=True, num_labels=5)
    assert (config.hidden_size, config.num_attention_heads, config.norm_pix_loss, config.num_labels) == (
        384,
        6,
        True,
        5,
    )


def test_unknown_preset_or_field_lists_similar_ones():
    with pytest.raises(ValueError, match="unknown preset 'hug'; did you mean 'huge'"):
        MAEConfig.from_preset("hug")
    with pytest.raises(ValueError, match="unknown preset 'vit'; known: base, huge, large, small, tiny"):
        MAEConfig.from_preset("vit")
    with pytest.raises(ValueError, match="unknown field 'mask_ration'; did you mean 'mask_ratio'"):
        MAEConfig.from_preset("base", mask_ration=0.5)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("hidden_size", -3, "a positive int, got -3"),
        ("hidden_size", "768", "a positive int, got '768'"),
        ("hidden_size", 770, "divisible by 4"),
        ("num_attention_heads", True, "a positive int, got True"),
        ("num_attention_heads", 11, r"divisible by num_attention_heads \(11\), got 768"),
        ("decoder_hidden_size", 510, "divisible by 4"),
        ("decoder_num_attention_heads", 3, r"divisible by decoder_num_attention_heads \(3\), got 512"),
        ("patch_size", 0, "a positive int, got 0"),
        ("patch_size", (16, 16), r"a positive int, got \(16, 16\)"),
        ("image_size", 225, r"divisible by patch_size \(16\), got 225"),
        ("image_size", (224, 100), r"divisible by patch_size \(16\), got \(224, 100\)"),
        ("image_size", (224,), r"a pair \(height, width\)"),
        ("image_size", 224.0, "a positive int or a pair"),
        ("mask_ratio", 1, r"a number in \[0, 1\), got 1"),
        ("mask_ratio", -0.5, r"a number in \[0, 1\), got -0.5"),
        ("mask_ratio", "0.75", "a number in"),
        ("drop_path_rate", 1.5, "a number in"),
        ("layer_norm_eps", 0, "a positive number, got 0"),
        ("initializer_range", float("nan"), "a non-negative number, got nan"),
        ("norm_pix_loss", 1, "True or False, got 1"),
        ("hidden_act", ["gelu"], r"activation in transformers, got \['gelu'\]"),
        ("hidden_act", "geluu", "activation in transformers, got 'geluu'"),
        ("pooling", "max", "one of"),
        ("linear_probe", "yes", "True or False, got .yes."),
    ],
)
def test_wrong_values_are_refused_by_field_and_value(field, value, wanted):
    named = {"num_attention_heads": "(num_attention_heads|hidden_size)"}.get(field, field)
    named = {"decoder_num_attention_heads": "decoder_hidden_size"}.get(field, named)
    with pytest.raises(ValueError, match=f"{named} must be .*{wanted}"):
        MAEConfig(**{field: value})


def test_mlp_ratio_sets_both_widths_inside_the_mlps():
    config = MAEConfig.from_preset("base", embed_dim=384, num_heads=6, mlp_ratio=2)
    assert (config.intermediate_size, config.decoder_intermediate_size) == (768, 1024)
    with pytest.raises(ValueError, match="mlp_ratio must be a positive number, got -1"):
        MAEConfig(mlp_ratio=-1)


def test_a_field_given_by_both_names_is_refused():
    with pytest.raises(ValueError, match="given by both of its names: embed_dim, hidden_size"):
        MAEConfig.from_preset("base", embed_dim=384, hidden_size=384)


def test_a_width_given_twice_is_refused():
    with pytest.raises(ValueError, match="specify either mlp_ratio or the widths"):
        MAEConfig.from_preset("base", mlp_ratio=2, intermediate_size=100)


def test_an_int_is_fine_where_a_number_is_meant():
    assert MAEConfig(mask_ratio=0, hidden_dropout_prob=0).mask_ratio == 0


def test_config_survives_saving(tmp_path):
    config = MAEConfig(img_size=(32, 64), patch_size=8, norm_pix_loss=True, mask_ratio=0.5)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, MAEConfig) and loaded.image_size == (32, 64)
    kept = [{**c.to_dict(), "transformers_version": "", "_name_or_path": ""} for c in (config, loaded)]
    assert kept[0] == kept[1]


def test_fields_set_while_loading_are_checked(tmp_path):
    MAEConfig().save_pretrained(tmp_path)
    assert MAEConfig.from_pretrained(tmp_path, mask_ratio=0.5).mask_ratio == 0.5
    with pytest.raises(ValueError, match="mask_ratio must be a number in .* got 2"):
        MAEConfig.from_pretrained(tmp_path, mask_ratio=2)
