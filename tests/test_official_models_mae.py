import argparse
import copy
import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from benchmarks.golden_weights import golden_input, golden_tensor
from mae_hf import MAEForPreTraining, MAEViTBase, MAEViTHuge, MAEViTLarge, MaskedAutoencoder, mae_vit_base_patch16
from mae_hf.conversion import convert
from mae_hf.official import models_mae
from tests.helpers import HEADS
from tests.helpers.official import TINY_MAE as TINY


@pytest.fixture
def model(tiny_weights):
    made = MaskedAutoencoder(**TINY).eval()
    made.load_state_dict(tiny_weights)
    return made


def test_factory_with_strict_official_keys_gives_the_golden_prediction(tiny_weights, golden):
    model = mae_vit_base_patch16(**TINY, norm_layer=partial(nn.LayerNorm, eps=1e-6), norm_pix_loss=True).eval()
    model.load_state_dict(tiny_weights, strict=True)
    loss, pred, mask = model(golden["pixel_values"], mask_ratio=0.75, noise=golden["noise"])
    assert_close(pred, golden["mask_0.75.pred"], atol=1e-5, rtol=0)
    assert_close(loss, golden["mask_0.75.loss_norm_pix"], atol=5e-6, rtol=0)
    assert torch.equal(mask, golden["mask_0.75.mask"])


def test_factory_without_arguments_gives_the_golden_prediction_of_base(reference):
    stored = load_file(reference / "full" / "base.safetensors")
    shapes = json.loads((reference / "manifests" / "base_pretrain_full.json").read_text())
    model = mae_vit_base_patch16().eval()
    model.load_state_dict({entry["key"]: golden_tensor(entry["key"], entry["shape"]) for entry in shapes}, strict=True)
    images, noise = golden_input(196)
    with torch.no_grad():
        loss, pred, mask = model(images, mask_ratio=0.75, noise=noise)
    assert_close(pred, stored["pred"], atol=1e-5, rtol=0)
    assert_close(loss, stored["loss"], atol=5e-6, rtol=0)
    assert torch.equal(mask, stored["mask"])


def test_state_dict_has_the_official_keys_in_the_official_order(model, tiny_weights):
    assert list(model.state_dict()) == list(tiny_weights)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in tiny_weights.items())


def test_parameters_have_the_official_names_and_order(model, tiny_weights):
    assert [name for name, _ in model.named_parameters()] == list(tiny_weights)
    assert sum(1 for _ in model.parameters()) == len(tiny_weights)


def test_state_dict_inside_a_wrapper_keeps_official_keys(model, tiny_weights):
    wrapper = nn.ModuleDict({"module": model, "other": nn.Linear(1, 1)})
    saved = {key: value.clone() for key, value in wrapper.state_dict().items()}
    lacking = {key: value for key, value in saved.items() if key not in ("module.blocks.1.norm1.bias", "other.bias")}
    assert wrapper.load_state_dict(lacking, strict=False).missing_keys == ["module.blocks.1.norm1.bias", "other.bias"]
    assert {f"module.{key}" for key in tiny_weights} | {"other.weight", "other.bias"} == set(saved)
    for parameter in wrapper.parameters():
        nn.init.zeros_(parameter)
    wrapper.load_state_dict(saved)
    assert all(torch.equal(wrapper.state_dict()[key], value) for key, value in saved.items())


def test_missing_and_unexpected_keys_are_reported_by_their_official_names(model, tiny_weights):
    del tiny_weights["decoder_pred.bias"]
    tiny_weights["head.weight"] = torch.zeros(1)
    report = model.load_state_dict(tiny_weights, strict=False)
    assert report.missing_keys == ["decoder_pred.bias"] and report.unexpected_keys == ["head.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "decoder_pred.bias"'):
        model.load_state_dict(tiny_weights)


def test_converting_its_state_dict_gives_the_same_model(model, golden, tmp_path):
    torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
    convert(tmp_path / "own.pth", tmp_path / "own", **HEADS)
    out = MAEForPreTraining.from_pretrained(tmp_path / "own")(golden["pixel_values"], noise=golden["noise"])
    assert_close(out.logits, golden["mask_0.75.pred"], atol=1e-5, rtol=0)


def test_official_training_loop_lowers_the_loss(golden):
    """The steps of `train_one_epoch` in engine_pretrain.py, with the parameter groups of main_pretrain.py."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(**TINY, norm_pix_loss=True)
    model.train(True)
    decay = [p for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1]
    no_decay = [p for n, p in model.named_parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": no_decay, "weight_decay": 0.0}, {"params": decay, "weight_decay": 0.05}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    values = []
    for _ in range(30):
        samples = golden["pixel_values"]
        loss, _, _ = model(samples, mask_ratio=0.75)
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(values[-5:]) < 0.9 * sum(values[:5])


def test_optimizer_state_of_an_official_training_checkpoint_fits(reference):
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(reference / "tiny" / "training_checkpoint.pth", weights_only=True)
    model = MaskedAutoencoder(**TINY)
    model.load_state_dict(checkpoint["model"])
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [[p for n, p in trained if p.ndim <= 1], [p for n, p in trained if p.ndim > 1]]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups])
    optimizer.load_state_dict(checkpoint["optimizer"])
    for parameter in (p for group in groups for p in group):
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_steps_of_the_official_visualisation_notebook(reference, golden):
    model = models_mae.mae_vit_large_patch16_dec512d8b(**TINY)
    checkpoint = torch.load(reference / "tiny" / "full.pth", map_location="cpu", weights_only=True)
    message = model.load_state_dict(checkpoint["model"], strict=False)
    assert not message.missing_keys and not message.unexpected_keys
    x = golden["pixel_values"][:1]
    _, y, mask = model(x.float(), mask_ratio=0.75, noise=golden["noise"][:1])
    y = torch.einsum("nchw->nhwc", model.unpatchify(y)).detach().cpu()
    mask = mask.detach().unsqueeze(-1).repeat(1, 1, model.patch_embed.patch_size[0] ** 2 * 3)
    mask = torch.einsum("nchw->nhwc", model.unpatchify(mask)).detach().cpu()
    x = torch.einsum("nchw->nhwc", x)
    im_paste = x * (1 - mask) + y * mask
    expected = golden["unpatchify"][:1].permute(0, 2, 3, 1)
    assert_close(im_paste[mask == 1], expected[mask == 1], atol=1e-5, rtol=0)
    assert torch.equal(im_paste[mask == 0], x[mask == 0])


def test_steps_of_the_official_methods_give_what_forward_gives(model, golden):
    images, noise = golden["pixel_values"], golden["noise"]
    latent, mask, ids_restore = model.forward_encoder(images, 0.75, noise)
    assert_close(latent, golden["mask_0.75.latent"], atol=2e-5, rtol=0)
    pred = model.forward_decoder(latent, ids_restore)
    loss = model.forward_loss(images, pred, mask)
    assert torch.equal(loss, model(images, 0.75, noise)[0])
    assert torch.equal(model.patchify(images), golden["patchify"])
    assert model(images, mask_ratio=0)[0].isnan()  # 0 / 0, as officially


def test_official_attributes_are_there(model):
    assert len(model.blocks) == len(model.decoder_blocks) == 2
    assert model.patch_embed.patch_size == (8, 8) and model.patch_embed.num_patches == 16
    assert model.pos_embed.shape == (1, 17, 64) and model.decoder_pos_embed.shape == (1, 17, 32)
    assert model.norm_pix_loss is False
    with pytest.raises(AttributeError, match="head"):
        _ = model.head


def test_target_can_be_set(model, golden):
    model.norm_pix_loss = True
    loss, _, _ = model(golden["pixel_values"], noise=golden["noise"])
    assert_close(loss, golden["mask_0.75.loss_norm_pix"], atol=5e-6, rtol=0)


def test_parameters_have_one_order_inside_wrappers_too(model):
    expected = [id(parameter) for parameter in model.parameters()]
    for wrapper in (nn.DataParallel(model), nn.Sequential(model), torch.optim.swa_utils.AveragedModel(model)):
        assert [p.shape for p in wrapper.parameters()] == [p.shape for p in model.parameters()]
    assert [id(parameter) for parameter in nn.Sequential(model).parameters()] == expected


def test_subclass_may_add_modules_and_override_masking(golden):
    class FirstPatches(MaskedAutoencoder):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.head = nn.Linear(64, 10)

        def random_masking(self, x, mask_ratio):
            noise = torch.arange(x.shape[1]).expand(x.shape[0], -1)
            return super().random_masking(x, mask_ratio, noise)

    model = FirstPatches(**TINY)
    assert {"head.weight", "head.bias"} <= dict(model.named_parameters()).keys() & model.state_dict().keys()
    model.load_state_dict(model.state_dict())
    _, _, mask = model(golden["pixel_values"], mask_ratio=0.75)
    assert not mask[:, :4].any() and mask[:, 4:].all()


def test_epsilon_comes_from_norm_layer():
    assert MaskedAutoencoder(**TINY).norm.eps == 1e-6
    assert MaskedAutoencoder(**TINY, norm_layer=nn.LayerNorm).decoder_norm.eps == 1e-5
    for other in (nn.BatchNorm1d, partial(nn.LayerNorm, elementwise_affine=False), partial(nn.LayerNorm, bias=False)):
        with pytest.raises(ValueError, match="norm_layer must make a plain nn.LayerNorm with weight and bias, got"):
            MaskedAutoencoder(**TINY, norm_layer=other)


def test_pretrained_encoder_loads_from_an_encoder_file_and_from_a_full_file(reference, golden):
    model = MaskedAutoencoder(**TINY).eval()
    before = model.decoder_pred.weight.clone()
    missing = model.load_pretrained_encoder(reference / "tiny" / "encoder.pth")
    assert missing and all(key.startswith(("decoder_", "mask_token")) for key in missing)
    assert torch.equal(model.decoder_pred.weight, before)
    latent, _, _ = model.forward_encoder(golden["pixel_values"], 0.75, golden["noise"])
    assert_close(latent, golden["mask_0.75.latent"], atol=2e-5, rtol=0)
    assert model.load_pretrained_encoder(reference / "tiny" / "full.pth") == []
    assert not torch.equal(model.decoder_pred.weight, before)


def test_weights_that_do_not_fit_this_model_are_refused(reference, tiny_weights, tmp_path):
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    torch.save(resnet, tmp_path / "resnet.pth")
    model = MaskedAutoencoder(**TINY)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit this model: missing keys: cls_token.* and \d+ more"):
        model.load_pretrained_encoder(tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="missing keys: norm.weight, norm.bias"):
        model.load_pretrained_encoder(reference / "tiny" / "finetuned.pth")
    with pytest.raises(ValueError, match="unexpected keys: head.weight, head.bias"):
        model.load_pretrained_encoder(reference / "tiny" / "finetuned_cls.pth")
    tiny_weights["pos_embed"] = torch.zeros(1, 5, 64)
    torch.save({"model": tiny_weights}, tmp_path / "other_size.pth")
    with pytest.raises(ValueError, match="size mismatch: pos_embed"):
        model.load_pretrained_encoder(tmp_path / "other_size.pth")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("variant", "name", "sizes"),
    [
        (MAEViTBase, "mae_vit_base_patch16", (16, 768, 12, 12, 111_907_840)),
        (MAEViTLarge, "mae_vit_large_patch16", (16, 1024, 24, 16, 329_541_888)),
        (MAEViTHuge, "mae_vit_huge_patch14", (14, 1280, 32, 16, 657_074_508)),
    ],
)
def test_factories_make_the_three_sizes_of_the_paper(variant, name, sizes):
    with torch.device("meta"):
        for factory in (models_mae.__dict__[name], models_mae.__dict__[f"{name}_dec512d8b"]):
            model = factory()
            config = model.config
            assert type(model) is variant
            found = (config.patch_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
            assert (*found, sum(p.numel() for p in model.parameters())) == sizes
    for number in sizes:
        assert f"{number:,}" in variant.__doc__ or str(number) in variant.__doc__


def test_official_class_name_is_an_alias():
    assert models_mae.MaskedAutoencoderViT is MaskedAutoencoder


@pytest.mark.parametrize("make", [mae_vit_base_patch16, MAEViTBase, MaskedAutoencoder])
def test_unknown_argument_is_refused_by_name(make):
    with pytest.raises(TypeError, match="unexpected keyword argument 'image_size'"):
        make(image_size=32)


def test_wrong_values_are_refused_by_name():
    with pytest.raises(ValueError, match=r"image_size must be divisible by patch_size \(8\), got 33"):
        MaskedAutoencoder(**{**TINY, "img_size": 33})
    with pytest.raises(ValueError, match=r"images have \(48, 32\) pixels, .* img_size=\(32, 32\)"):
        MaskedAutoencoder(**TINY)(torch.zeros(1, 3, 48, 32))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(3, 32, 32\)"):
        MaskedAutoencoder(**TINY)(torch.zeros(3, 32, 32))


def test_seed_gives_the_official_masks(model, golden, monkeypatch):
    """Noise is drawn by one call of `torch.rand(N, L)`, as officially."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: golden["noise"].reshape(size))
    assert_close(model(golden["pixel_values"])[1], golden["mask_0.75.pred"], atol=1e-5, rtol=0)


def test_copying_and_moving_keep_it_whole(model, golden):
    copied = copy.deepcopy(model).double()
    _, pred, _ = copied(golden["pixel_values"].double(), noise=golden["noise"])
    assert pred.dtype == torch.float64
    assert_close(pred.float(), golden["mask_0.75.pred"], atol=1e-5, rtol=0)
