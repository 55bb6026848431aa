import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForPreTraining, PreTrainedModel, ViTConfig, ViTMAEConfig

from benchmarks.golden_weights import golden_tensor
from mae_hf import MAEConfig, MAEForPreTraining, MAEModel, UntrainedWeightsWarning, get_2d_sincos_pos_embed

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def assert_official_initialisation(model):
    """Position embeddings, tokens, Linears and the patch projection, as in the official `initialize_weights`."""
    for owner, grid in ((model.mae, model.mae.patch_embed.grid_size), (model.decoder, model.decoder.grid_size)):
        assert torch.equal(owner.pos_embed[0], get_2d_sincos_pos_embed(owner.pos_embed.shape[-1], grid, cls_token=True))
        assert not owner.pos_embed.requires_grad
    assert 0.01 < model.mae.cls_token.std() < 0.03 and 0.01 < model.decoder.mask_token.std() < 0.03
    weights = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert len(weights) == 4 * 4 + 3
    for name, module in weights.items():
        matrix = module.weight.flatten(1)
        bound = (6 / sum(matrix.shape)) ** 0.5
        assert 0.95 * bound < matrix.abs().max() <= bound, name
        assert_close(matrix.std().item(), bound / 3**0.5, rtol=0.1, atol=0)
        assert not module.bias.any(), name
    assert all((m.weight == 1).all() and not m.bias.any() for m in model.modules() if isinstance(m, torch.nn.LayerNorm))


def test_fresh_model_is_initialised_officially(fresh):
    assert_official_initialisation(fresh())


def test_fresh_lone_encoder_is_initialised_officially(tiny_config):
    model = MAEModel(tiny_config())
    assert torch.equal(model.pos_embed[0], get_2d_sincos_pos_embed(64, 4, cls_token=True))
    assert not model.pos_embed.requires_grad and 0.01 < model.cls_token.std() < 0.03
    assert not model.encoder.blocks[0].attn.qkv.bias.any() and model.encoder.blocks[0].attn.qkv.weight.any()


@pytest.mark.parametrize(("preset", "width", "grid"), [("base", 768, 14), ("large", 1024, 14), ("huge", 1280, 16)])
def test_initial_position_embeddings_of_the_three_sizes_equal_the_official_ones(reference, preset, width, grid):
    stored = load_file(reference / "pos_embed" / "pos_embed.safetensors")
    model = MAEForPreTraining(MAEConfig.from_preset(preset, depth=1, decoder_depth=1))
    for pos_embed, columns in ((model.mae.pos_embed, width), (model.decoder.pos_embed, 512)):
        assert_close(pos_embed[0, ::5, ::3].detach(), stored[f"sincos.{columns}_{grid}"], atol=2e-6, rtol=0)


def test_model_from_config_is_initialised_officially(tiny_config):
    assert_official_initialisation(AutoModelForPreTraining.from_config(tiny_config()))


def test_keys_missing_in_a_checkpoint_are_initialised_officially(fresh, tmp_path):
    fresh().save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in kept.items() if key == "decoder.pred.bias"}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_official_initialisation(MAEForPreTraining.from_pretrained(tmp_path))


def test_loaded_weights_survive_the_initialisation_of_missing_ones(fresh, tmp_path):
    model = fresh()
    torch.nn.init.normal_(model.decoder.pos_embed)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for missing in ("decoder.mask_token", "mae.patch_embed.proj.bias", "mae.cls_token"):
        del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = MAEForPreTraining.from_pretrained(tmp_path)
    for key, value in tensors.items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert loaded.mae.cls_token.any() and loaded.decoder.mask_token.any()


def test_saving_and_loading_changes_no_bit(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded, info = MAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    frozen = {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad}
    assert frozen == {"mae.pos_embed", "decoder.pos_embed"}


def test_encoder_of_a_pretraining_folder_loads_without_a_warning(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for loaded in (MAEModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert_close(loaded(IMAGES).last_hidden_state, model.mae(IMAGES).last_hidden_state)
    _, info = MAEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_encoder_folder_warns_when_it_is_loaded_with_a_decoder(tiny_model, tmp_path):
    encoder = tiny_model().mae
    encoder.save_pretrained(tmp_path)
    message = r"decoder is randomly initialised.*encoder-only.*mae_visualize_vit_\*.pth .*mae_pretrain_vit_\*_full.pth"
    with pytest.warns(UntrainedWeightsWarning, match=message) as warned:
        model = MAEForPreTraining.from_pretrained(tmp_path)
    assert len(warned) == 1
    assert torch.equal(model.mae.encoder.norm.weight, encoder.encoder.norm.weight)
    model(IMAGES).loss.backward()
    assert model.decoder.mask_token.grad.any()


def test_features_are_deterministic_and_in_image_order_whatever_the_mask_ratio(tiny_model, golden):
    encoders = [tiny_model(mask_ratio=ratio).mae for ratio in (0.0, 0.75)]
    first = encoders[0](golden["pixel_values"])
    for encoder in (*encoders, *encoders):
        assert torch.equal(encoder(golden["pixel_values"]).last_hidden_state, first.last_hidden_state)
    assert first.mask is None and first.ids_restore is None
    shuffled = golden["mask_0.0.latent"][:, 1:]
    order = golden["mask_0.0.ids_restore"].unsqueeze(-1).expand_as(shuffled)
    assert_close(first.last_hidden_state[:, 1:], shuffled.gather(1, order), atol=2e-5, rtol=0)


def test_masked_tokens_come_in_noise_order_at_ratio_zero_too(tiny_model, golden):
    out = tiny_model().mae(golden["pixel_values"], noise=golden["noise"], mask_ratio=0)
    assert_close(out.last_hidden_state, golden["mask_0.0.latent"], atol=2e-5, rtol=0)
    assert out.pooler_output is None and not out.mask.any()


def test_noise_alone_masks_by_the_config(tiny_model, golden):
    out = tiny_model(mask_ratio=0.5).mae(golden["pixel_values"], noise=golden["noise"])
    assert torch.equal(out.mask, golden["mask_0.5.mask"])


def test_pooling_is_the_mean_of_the_patches_or_the_class_token(tiny_model):
    out = tiny_model(pooling="mean").mae(IMAGES)
    assert_close(out.pooler_output, out.last_hidden_state[:, 1:].mean(dim=1))
    out = tiny_model(pooling="cls").mae(IMAGES)
    assert torch.equal(out.pooler_output, out.last_hidden_state[:, 0])


def test_given_mask_takes_precedence_and_gives_what_the_same_noise_gives(tiny_model, golden):
    model = tiny_model()
    masked = golden["mask_0.75.mask"].bool()
    out = model(golden["pixel_values"], bool_masked_pos=masked, noise=torch.rand(4, 16), mask_ratio=0.5)
    assert torch.equal(out.mask, golden["mask_0.75.mask"])
    assert_close(out.logits, golden["mask_0.75.pred"], atol=1e-5, rtol=0)
    assert_close(out.loss, golden["mask_0.75.loss"], atol=5e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("size", [(32, 64), (48, 80)])
def test_other_channels_and_shapes_train_and_reconstruct(fresh, channels, size):
    model = fresh(image_size=size, num_channels=channels)
    images = torch.randn(2, channels, *size)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(8):
        out = model(images, noise=torch.arange(model.mae.patch_embed.num_patches).expand(2, -1).float())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < losses[0]
    assert model.unpatchify(out.logits).shape == images.shape
    assert torch.equal(model.unpatchify(model.patchify(images)), images)


def test_other_sizes_for_one_call_equal_those_set_permanently(tiny_model, tmp_path):
    model, size = tiny_model(), (48, 24)
    images, noise = torch.randn(2, 3, *size), torch.rand(2, 18)
    once = model(images, noise=noise, interpolate_pos_encoding=True)
    features = model.mae(images, interpolate_pos_encoding=True)
    model.set_image_size(size)
    assert model.config.image_size == size
    model.save_pretrained(tmp_path)
    for resized in (model, MAEForPreTraining.from_pretrained(tmp_path)):
        out = resized(images, noise=noise)
        assert_close(out.logits, once.logits)
        assert_close(out.loss, once.loss)
        assert_close(resized.mae(images).last_hidden_state, features.last_hidden_state)
        assert resized.unpatchify(out.logits).shape == images.shape
        assert not resized.mae.pos_embed.requires_grad and not resized.decoder.pos_embed.requires_grad


def test_models_that_share_a_config_still_work_when_one_is_resized(tiny_config):
    config = tiny_config()
    first, second = MAEForPreTraining(config), MAEForPreTraining(config)
    first.set_image_size(64)
    assert first.mae.config is first.config and first.config.image_size == 64
    assert first(torch.zeros(1, 3, 64, 64)).logits.shape[1] == 64
    assert second.unpatchify(second(torch.zeros(1, 3, 32, 32)).logits).shape == (1, 3, 32, 32)


def test_encoder_inside_another_model_is_resized_and_saved_with_it(tiny_config, tmp_path):
    class Wrapper(PreTrainedModel):
        config_class = MAEConfig

        def __init__(self, config):
            super().__init__(config)
            self.backbone = MAEModel(config)
            self.post_init()

    model = Wrapper(tiny_config())
    model.backbone.set_image_size(64)
    model.save_pretrained(tmp_path)
    loaded = Wrapper.from_pretrained(tmp_path)
    assert torch.equal(loaded.backbone.pos_embed, model.backbone.pos_embed)


@pytest.mark.parametrize("grid", [6, 3])
def test_interpolated_position_embeddings_equal_the_official_ones(tiny_model, reference, tmp_path, grid):
    expected = load_file(reference / "pos_embed" / "pos_embed.safetensors")[f"tiny.to_{grid}"]
    model = tiny_model()
    model.set_image_size(grid * 8)
    model.save_pretrained(tmp_path)
    for resized in (model, MAEForPreTraining.from_pretrained(tmp_path)):
        assert_close(resized.mae.pos_embed.data, expected, atol=1e-5, rtol=0)


def test_interpolated_position_embeddings_of_base_equal_the_official_ones(reference, tmp_path):
    expected = load_file(reference / "pos_embed" / "pos_embed.safetensors")["base.to_24"]
    model = MAEModel(MAEConfig.from_preset("base", depth=1))
    model.pos_embed.data = golden_tensor("pos_embed", [1, 197, 768])
    model.set_image_size(384)
    model.save_pretrained(tmp_path)
    for resized in (model, MAEModel.from_pretrained(tmp_path)):
        assert_close(resized.pos_embed[:, ::7, ::5].detach(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [ViTMAEConfig(), ViTConfig()])
def test_folder_of_another_model_is_refused_and_the_way_to_load_it_is_named(config, tmp_path):
    config.save_pretrained(tmp_path)
    message = f"config of a '{config.model_type}' model, not of a 'mae' model: .*mae_hf.load_vit_mae.*`mae-hf convert`"
    for load in (MAEForPreTraining.from_pretrained, MAEModel.from_pretrained, MAEConfig.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_checkpoint_file_is_refused_and_its_conversion_is_named(reference, tmp_path):
    """By string or path, and for a file that does not exist."""
    (tmp_path / "model.safetensors").touch()
    for name in (
        str(reference / "tiny" / "full.pth"),
        reference / "tiny" / "full.pth",
        "x.pth",
        tmp_path / "model.safetensors",
    ):
        message = f"{re.escape(str(name))} is a checkpoint file, .*`mae-hf convert {re.escape(str(name))} FOLDER`"
        with pytest.raises(ValueError, match=message):
            MAEForPreTraining.from_pretrained(name)
    MAEConfig(hidden_size=16, depth=1, num_heads=2).save_pretrained(tmp_path / "folder.pth")
    with pytest.raises(OSError, match="no file named .*model.safetensors"):  # a folder may have such a name
        MAEForPreTraining.from_pretrained(tmp_path / "folder.pth")


def test_another_size_in_from_pretrained_is_refused_with_the_way_to_set_it(tiny_model, tiny_config, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    for size in (48, (16, 64)):  # the second has as many patches
        for load, options in (
            (MAEForPreTraining.from_pretrained, {"image_size": size}),
            (MAEForPreTraining.from_pretrained, {"config": tiny_config(image_size=size)}),
            (AutoModel.from_pretrained, {"img_size": size}),
        ):
            with pytest.raises(ValueError, match=rf"for image size 32, not {re.escape(str(size))}: .*set_image_size"):
                load(pretrained_model_name_or_path=tmp_path, **options)
    assert MAEForPreTraining.from_pretrained(tmp_path, img_size=(32, 32)).config.grid_size == (4, 4)
    weights, config = tiny_model().state_dict(), tiny_config()
    assert MAEForPreTraining.from_pretrained(None, config=config, state_dict=weights).config.image_size == 32
    message = (
        r"size mismatch between checkpoint and model: mae.encoder.blocks.0.mlp.fc1.bias: \(256,\) in the checkpoint"
    )
    with pytest.raises(RuntimeError, match=message):
        MAEForPreTraining.from_pretrained(tmp_path, intermediate_size=128)


NAN = torch.full((2, 16), float("nan"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": torch.zeros(2, 4, 32, 32)}, r"\(B, 3, H, W\), got \(2, 4, 32, 32\)"),
        ({"pixel_values": torch.zeros(3, 32, 32)}, r"\(B, 3, H, W\), got \(3, 32, 32\)"),
        ({"pixel_values": torch.zeros(2, 3, 48, 48)}, "48x48 pixels, the model expects 32x32.*set_image_size"),
        ({"pixel_values": torch.zeros(2, 3, 30, 30), "interpolate_pos_encoding": True}, "30x30 is not divisible by"),
        ({"mask_ratio": 1.0}, r"\[0, 1\), got 1.0"),
        ({"mask_ratio": -0.1}, r"\[0, 1\), got -0.1"),
        ({"mask_ratio": 0.99}, "0.99 leaves none of 16 patches visible"),
        ({"noise": torch.rand(2, 17)}, r"noise must have the shape \(2, 16\), got \(2, 17\)"),
        ({"noise": NAN}, "noise must not contain NaN"),
        ({"bool_masked_pos": torch.zeros(2, 4, 4).bool()}, r"shape \(2, 16\), got \(2, 4, 4\)"),
        ({"bool_masked_pos": torch.arange(32).reshape(2, 16) < 20}, r"in every row, got \[16, 4\]"),
        ({"bool_masked_pos": torch.ones(2, 16).bool()}, "masks all 16 patches"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_wrong_input_is_refused_by_name(fresh, arguments, message, whole):
    model = fresh() if whole else fresh().mae
    with pytest.raises(ValueError, match=message):
        model(**{"pixel_values": IMAGES, **arguments})


def test_wrong_sizes_are_refused_by_name(fresh, tiny_config):
    model = fresh()
    with pytest.raises(ValueError, match="36x36 is not divisible by the patch size 8"):
        model.set_image_size(36)
    for size in (48.0, True, "48", (48,)):
        with pytest.raises(ValueError, match="an int or a pair .* got"):
            model.set_image_size(size)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(2, 1, 32, 32\)"):
        model.patchify(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"\(B, L, 192\), got \(2, 16, 64\)"):
        model.unpatchify(torch.zeros(2, 16, 64))
    with pytest.raises(ValueError, match="an image of 4x4 patches needs 16 patches, got 18"):
        model.unpatchify(torch.zeros(2, 18, 192))
    config = tiny_config()
    config.hidden_size = -3
    with pytest.raises(ValueError, match="hidden_size must be a positive int, got -3"):
        MAEModel(config)


def test_attention_implementation_can_be_changed_while_the_model_runs(tiny_model):
    model = tiny_model(attn_implementation="sdpa")
    features = model.mae(IMAGES).last_hidden_state
    model.set_attn_implementation("eager")
    out = model(IMAGES, mask_ratio=0.5, output_attentions=True, output_hidden_states=True)
    assert [weights.shape for weights in out.attentions] == [(2, 4, 9, 9)] * 2
    assert [state.shape for state in out.hidden_states] == [(2, 9, 64)] * 3
    assert_close(model.mae(IMAGES).last_hidden_state, features, atol=2e-5, rtol=0)


def test_outputs_are_a_tuple_if_requested(tiny_model, golden):
    out = tiny_model()(golden["pixel_values"], noise=golden["noise"], return_dict=False)
    assert isinstance(out, tuple) and len(out) == 4
    by_config = tiny_model(return_dict=False)(golden["pixel_values"], noise=golden["noise"])
    assert torch.equal(by_config[1], out[1])
    assert_close(out[1], golden["mask_0.75.pred"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_give_a_finite_loss_in_float32(tiny_model, tmp_path, dtype):
    tiny_model(norm_pix_loss=True).save_pretrained(tmp_path)
    model = MAEForPreTraining.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    out = model(IMAGES)  # float32 images are cast
    assert out.logits.dtype == dtype and out.loss.dtype == torch.float32 and out.loss.isfinite()


def test_dropout_of_the_config_acts_in_training_only(fresh):
    model = fresh(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, drop_path_rate=0.5).mae
    assert not torch.equal(model(IMAGES).last_hidden_state, model(IMAGES).last_hidden_state)
    model.eval()
    assert torch.equal(model(IMAGES).last_hidden_state, model(IMAGES).last_hidden_state)
