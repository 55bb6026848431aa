"""Operations and activation memory of a model. Speed: benchmarks/README.md."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEForPreTraining

from mae_hf import MAEConfig, MAEForPreTraining, MAEModel
from mae_hf.vit_mae import config_to_vit_mae


def encoder_flops(mask_ratio):
    """Operations in the linear layers of base's encoder for one image."""
    with torch.device("meta"):
        model, images = MAEModel(MAEConfig.from_preset("base", depth=2)), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(images, mask_ratio=mask_ratio)
    return counter.get_flop_counts()["MAEModel.encoder"][torch.ops.aten.addmm]


@pytest.mark.parametrize("mask_ratio", [0.25, 0.5, 0.75, 0.9])
def test_the_encoder_computes_for_visible_patches_only(mask_ratio):
    tokens = 1 + int(196 * (1 - mask_ratio))
    assert encoder_flops(mask_ratio) * 197 == encoder_flops(None) * tokens


class Reads(TorchDispatchMode):
    """Counts how often Python reads a value of a tensor, for which it would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_pretraining_step_never_waits_for_a_gpu(tiny_model, norm_pix_loss):
    model = tiny_model(norm_pix_loss=norm_pix_loss).train()
    with Reads() as reads:
        model(torch.randn(2, 3, 32, 32)).loss.backward()
    assert reads.count == 0


def kept_bytes(model, images):
    """Bytes that one forward pass keeps for the backward pass, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other takes its address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(images).loss
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in weights)


@pytest.mark.parametrize(
    ("attention", "dtype", "fraction"),
    [
        ("sdpa", torch.float32, 0.96),
        ("sdpa", torch.bfloat16, 0.94),
        ("eager", torch.float32, 0.97),
        ("eager", torch.bfloat16, 0.84),  # attention weights are kept in one dtype, not in two
    ],
)
def test_a_pretraining_step_keeps_less_than_that_of_transformers(attention, dtype, fraction):
    config = MAEConfig.from_preset("base", depth=2, decoder_depth=2, attn_implementation=attention)
    their_config = config_to_vit_mae(config)
    their_config._attn_implementation = attention
    images = torch.randn(2, 3, 224, 224)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours = kept_bytes(MAEForPreTraining(config).train(), images)
        theirs = kept_bytes(ViTMAEForPreTraining(their_config).train(), images)
    assert ours <= fraction * theirs
