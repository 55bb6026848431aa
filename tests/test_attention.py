import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.testing import assert_close
from transformers.utils import is_flash_attn_2_available

from mae_hf import Attention, MAEForPreTraining
from mae_hf.attention import eager_attention

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))


def test_attention_equals_the_one_of_pytorch():
    ours, theirs = Attention(24, 4), torch.nn.MultiheadAttention(24, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = torch.randn(2, 5, 24)
    expected, expected_weights = theirs(x, x, x, average_attn_weights=False)
    for implementation in ("sdpa", "eager"):
        ours.attn_implementation = implementation
        out, weights = ours(x)
        torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights, expected_weights)


def test_weights_come_with_eager_attention_only():
    x = torch.randn(1, 5, 24)
    assert Attention(24, 4, attn_implementation="eager")(x)[1].shape == (1, 4, 5, 5)
    assert Attention(24, 4, attn_implementation="sdpa")(x)[1] is None


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_dropout_acts_in_training_only(implementation):
    attention = Attention(24, 4, attn_drop=0.5, attn_implementation=implementation)
    x = torch.randn(1, 5, 24)
    assert not torch.equal(attention(x)[0], attention(x)[0])
    attention.eval()
    assert torch.equal(attention(x)[0], attention(x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_eager_attention_rounds_its_weights_once_in_half_precision(dtype):
    query, key, value = (10 * torch.randn(2, 4, 50, 16, dtype=dtype) for _ in range(3))
    _, weights = eager_attention(torch.nn.Identity(), query, key, value, None, scaling=0.25)
    scores = query * 0.25 @ key.transpose(2, 3)
    assert_close(weights, scores.softmax(dim=-1, dtype=torch.float32).to(dtype), atol=0, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train", [True, False])
def test_sdpa_runs_wherever_it_is_chosen(tiny_model, dtype, train):
    model = tiny_model(attn_implementation="sdpa").train(train)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), profile() as run:
        model(IMAGES, noise=NOISE)
    calls = {event.key: event.count for event in run.key_averages()}
    attention = [module for module in model.modules() if isinstance(module, Attention)]
    assert calls["aten::scaled_dot_product_attention"] == len(attention)
    assert "aten::softmax" not in calls


def test_projection_without_bias():
    assert Attention(24, 4, qkv_bias=False).qkv.bias is None


def test_width_must_be_divisible_by_heads():
    with pytest.raises(ValueError, match="dim 24 is not divisible by num_heads 5"):
        Attention(24, 5)
    with pytest.raises(ValueError, match="num_heads 0"):
        Attention(24, 0)


def pretraining_step(model):
    """Outputs of a pretraining model and gradients of its trained weights, for fixed images and noise."""
    model.zero_grad()
    out = model(IMAGES, noise=NOISE)
    out.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {"loss": out.loss, "logits": out.logits}, gradients


@pytest.fixture
def chosen(tiny_model, tmp_path):
    """Builds the tiny model with an attention implementation that is chosen in one of three ways."""

    def make(way, implementation):
        model = tiny_model(attn_implementation=implementation) if way == "config" else tiny_model()
        if way == "from_pretrained":
            model.save_pretrained(tmp_path / "model")
            model = MAEForPreTraining.from_pretrained(tmp_path / "model", attn_implementation=implementation)
        elif way == "set_attn_implementation":
            model.set_attn_implementation(implementation)
        attention = {module for module in model.modules() if isinstance(module, Attention)}
        assert {module.config._attn_implementation for module in attention} == {implementation}
        return model

    return make


WAYS = ["config", "from_pretrained", "set_attn_implementation"]


@pytest.mark.parametrize("way", WAYS)
def test_eager_and_sdpa_give_a_whole_model_the_same_outputs_and_gradients(chosen, way):
    (eager, eager_gradients), (sdpa, sdpa_gradients) = (
        pretraining_step(chosen(way, name)) for name in ("eager", "sdpa")
    )
    assert_close(sdpa, eager, atol=5e-6, rtol=0)
    assert not torch.equal(sdpa["logits"], eager["logits"])  # so different code ran
    assert_close(sdpa_gradients, eager_gradients, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_kernels_of_sdpa_agree_with_eager_attention(tiny_model, kernel):
    expected, expected_gradients = pretraining_step(tiny_model(attn_implementation="eager"))
    with sdpa_kernel(kernel):  # no other is allowed
        outputs, gradients = pretraining_step(tiny_model(attn_implementation="sdpa"))
    assert_close(outputs, expected, atol=5e-6, rtol=0)
    assert_close(gradients, expected_gradients, atol=5e-6, rtol=1e-4)


@pytest.mark.heavy  # transformers compiles flex attention at its first use
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # PyTorch's own
@pytest.mark.parametrize("way", WAYS)
def test_flex_attention_gives_a_whole_model_the_same_outputs(chosen, tiny_model, way):
    # outputs alone: PyTorch has no backward pass of flex attention on a CPU ("does not support backward on CPU")
    with torch.no_grad():
        expected = tiny_model(attn_implementation="eager")(IMAGES, noise=NOISE)
        out = chosen(way, "flex_attention")(IMAGES, noise=NOISE)
    assert_close(out.logits, expected.logits, atol=5e-6, rtol=0)
    assert_close(out.loss, expected.loss, atol=5e-6, rtol=0)


@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()),
    reason="FlashAttention-2 needs an NVIDIA GPU and the package flash_attn",
)
def test_flash_attention_2_agrees_with_eager_attention_in_half_precision(tiny_model):
    outputs = {}
    for implementation in ("eager", "flash_attention_2"):
        model = tiny_model(attn_implementation=implementation).to("cuda", torch.bfloat16)
        with torch.no_grad():
            outputs[implementation] = model(IMAGES.cuda(), noise=NOISE.cuda()).logits.float()
    assert_close(outputs["flash_attention_2"], outputs["eager"], atol=0.05, rtol=0)  # bfloat16 has 8 bits
