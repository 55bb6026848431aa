"""Training in half precision and with activation checkpointing."""

import pytest
import torch
from torch.testing import assert_close

from mae_hf import Block, MAEForImageClassification, MAEForPreTraining, MAEModel
from mae_hf.loss import reconstruction_loss

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 1])
PIXELS, CLASSES = {"pixel_values": IMAGES, "noise": NOISE}, {"pixel_values": IMAGES, "labels": LABELS}
CASES = {  # model, fields of its config, input
    "pretraining": (MAEForPreTraining, {}, PIXELS),
    "normalised pixels": (MAEForPreTraining, {"norm_pix_loss": True}, PIXELS),
    "classifier": (MAEForImageClassification, {"num_labels": 3}, CLASSES),
    "linear probe": (MAEForImageClassification, {"num_labels": 3, "pooling": "cls", "linear_probe": True}, CLASSES),
}
DROPPING = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.3}


@pytest.fixture
def make(tiny_config):
    """Makes a fresh tiny model of a class, the same every time, in training mode."""

    def made(model_class, fields):
        torch.manual_seed(0)
        return model_class(tiny_config(**fields)).train()

    return made


def train(model, inputs, autocast=None):
    """Losses of five steps; fails if a gradient or weight is not finite."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(5):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            out = model(**inputs)
        assert autocast is None or out.logits.dtype == autocast
        optimizer.zero_grad()
        out.loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        assert all(p.isfinite().all() for p in model.parameters())
        losses.append(out.loss.detach())
    assert losses[-1] < losses[0]
    return torch.stack(losses)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-3), (torch.float16, 3e-4)])
@pytest.mark.parametrize("case", CASES)
def test_training_under_autocast_is_finite_and_close_to_float32(make, case, dtype, tolerance):
    model_class, fields, inputs = CASES[case]
    losses = train(make(model_class, fields), inputs, dtype)
    assert losses.dtype == torch.float32
    assert_close(losses, train(make(model_class, fields), inputs), rtol=tolerance, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_training_weights_of_bfloat16_is_finite_and_close_to_float32(make, tmp_path, case):
    model_class, fields, inputs = CASES[case]
    make(model_class, fields).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, dtype=torch.bfloat16).train()
    losses = train(model, inputs)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    # steps below 1/256 of a weight are lost: the losses differ a little more than under autocast
    assert_close(losses.float(), train(make(model_class, fields), inputs), rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_loss_of_half_precision_weights_is_float32(make, case, dtype):
    model_class, fields, inputs = CASES[case]
    model = make(model_class, fields).to(dtype)
    out = model(**inputs)
    assert out.logits.dtype == dtype and out.loss.dtype == torch.float32
    logits = out.logits.float()
    if "labels" in inputs:
        expected = torch.nn.functional.cross_entropy(logits, LABELS)
    else:
        expected = reconstruction_loss(model.patchify(IMAGES), logits, out.mask, model.config.norm_pix_loss)
    assert_close(out.loss, expected)  # nothing on the way was rounded to half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_loss_of_several_labels_is_float32_or_wider(make, dtype):
    model = make(MAEForImageClassification, {"num_labels": 3}).to(dtype)
    labels = torch.tensor([[0, 1, 0.5]] * 4, dtype=dtype)  # in the dtype of the weights too
    assert model(IMAGES, labels=labels).loss.dtype == torch.promote_types(dtype, torch.float32)


def gradients(model, inputs):
    """Gradients for one seed of masking, dropout and drop path, and the number of blocks that ran."""
    runs = []
    for block in (module for module in model.modules() if isinstance(module, Block)):
        block.norm1.register_forward_hook(lambda *_: runs.append(1))
    torch.manual_seed(1)
    out = model(**inputs)
    (out.last_hidden_state.pow(3).mean() if "last_hidden_state" in out else out.loss).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, len(runs)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("dropping", [{}, DROPPING], ids=["plain", "dropping"])
@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEModel, MAEForImageClassification])
def test_activation_checkpointing_changes_no_bit_of_a_gradient(make, model_class, dropping, use_reentrant):
    fields = {"num_labels": 3, **dropping}
    inputs = CLASSES if model_class is MAEForImageClassification else {"pixel_values": IMAGES, "mask_ratio": 0.5}
    expected, runs = gradients(make(model_class, fields), inputs)
    model = make(model_class, fields)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})  # the second name is that of older transformers
    found, runs_with_checkpointing = gradients(model, inputs)
    assert runs_with_checkpointing == 2 * runs  # each block runs again in the backward pass
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(gradient.any() for gradient in found.values())
