"""`torch.compile` of whole models, as one graph (`fullgraph=True` refuses any break) and for every batch size."""

import pytest
import torch
from torch.testing import assert_close

from mae_hf import MAEForImageClassification, MAEForPreTraining, MAEModel, grid_masking

MODELS = [MAEForPreTraining, MAEModel, MAEForImageClassification]
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (  # PyTorch's own: on importing Inductor, and when Dynamo reads a tensor after a graph break
        "`torch.jit.script_method` is deprecated:DeprecationWarning",
        "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed:UserWarning",
    )
]


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    """Reset the compiler between tests."""
    torch.compiler.reset()


@pytest.fixture
def make(tiny_config):
    """Makes a new tiny model of a class, the same every time; a classifier's head has large weights."""

    def made(model_class, **fields):
        torch.manual_seed(0)
        model = model_class(tiny_config(num_labels=3, **fields))
        if model_class is MAEForImageClassification:
            torch.nn.init.normal_(model.head.weight)
        return model

    return made


def batch(model, size, dynamic=False):
    """Input for a batch size: images, and the labels or noise for a deterministic output with a loss."""
    generator = torch.Generator().manual_seed(size)
    inputs = {"pixel_values": torch.randn(size, 3, 32, 32, generator=generator)}
    if isinstance(model, MAEForImageClassification):
        inputs["labels"] = torch.arange(size) % 3
    else:
        inputs["noise"] = torch.rand(size, 16, generator=generator)
    if dynamic:
        for tensor in inputs.values():
            torch._dynamo.mark_dynamic(tensor, 0)
    return inputs


def tensors(model, out):
    """All tensors of an output; in training, also the gradients of the weights."""
    found = {key: value for key, value in out.items() if torch.is_tensor(value)}
    if model.training:
        model.zero_grad()
        (out.loss if "loss" in out else out.last_hidden_state.pow(3).mean()).backward()
        found.update({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    return found


def assert_compiled_equals_eager(model, compiled, size):
    """Outputs, and gradients in training, with the same noise."""
    with torch.set_grad_enabled(model.training):
        expected = tensors(model, model(**batch(model, size)))
        found = tensors(model, compiled(**batch(model, size, dynamic=True)))
    assert len(found) > 10 or not model.training  # gradients are among them
    assert_close(found, expected, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("model_class", MODELS)
def test_one_graph_serves_every_batch_size(make, model_class, training, backend):
    model = make(model_class).train(training)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert_compiled_equals_eager(model, compiled, 2)
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in (3, 7):
            assert_compiled_equals_eager(model, compiled, size)


@pytest.mark.heavy
def test_dynamic_compilation_needs_no_marks(make):
    model = make(MAEModel).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        compiled(**batch(model, 2))
        with torch.compiler.set_stance("fail_on_recompile"):
            found = compiled(**batch(model, 5))
    assert_close(found.last_hidden_state, model(**batch(model, 5)).last_hidden_state, atol=5e-6, rtol=0)


def test_compiled_model_draws_a_new_mask_every_time(make):
    model = torch.compile(make(MAEForPreTraining), fullgraph=True, backend="aot_eager")
    first, second = (model(torch.zeros(2, 3, 32, 32)).mask for _ in range(2))
    assert (first.sum(dim=1) == 12).all() and (second.sum(dim=1) == 12).all()
    assert not torch.equal(first, second)


def test_hidden_states_come_from_one_graph_once_transformers_has_hooked_the_blocks(make):
    model = make(MAEForPreTraining)
    expected = model(**batch(model, 2), output_hidden_states=True).hidden_states  # hooks them: Dynamo cannot trace that
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**batch(model, 2), output_hidden_states=True).hidden_states, expected)


def test_given_mask_breaks_the_graph_and_the_same_mask_as_noise_does_not(make):
    model, images = make(MAEForPreTraining), torch.randn(2, 3, 32, 32)
    masked = grid_masking(2, (4, 4), 0.75)
    expected = model(images, bool_masked_pos=masked)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Data-dependent branching"):  # it counts the masked ones
        whole(images, bool_masked_pos=masked)
    as_noise = {"noise": masked.float(), "mask_ratio": (12 - 0.5) / 16}  # the smallest noise is visible
    outs = [model(images, **as_noise), whole(images, **as_noise)]
    torch.compiler.reset()
    outs.append(torch.compile(model, backend="aot_eager")(images, bool_masked_pos=masked))  # may break
    for out in outs:
        assert torch.equal(out.mask, masked.float())
        assert_close((out.loss, out.logits), (expected.loss, expected.logits), atol=5e-6, rtol=0)
