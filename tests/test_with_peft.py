"""LoRA (Hu et al. 2021) on the fused projection `qkv`, with the functions of peft and with those of transformers."""

import pytest
import torch
from torch.testing import assert_close

from mae_hf import MAEForImageClassification, MAEForPreTraining

pytestmark = [
    pytest.mark.heavy,  # needs peft
    # peft 0.21 uses a name that transformers 5.23 deprecates
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning"),
]
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
INPUTS = {
    MAEForPreTraining: {"pixel_values": IMAGES, "noise": NOISE},
    MAEForImageClassification: {"pixel_values": IMAGES, "labels": torch.tensor([0, 1, 2, 1])},
}
both_models = pytest.mark.parametrize("model_class", INPUTS)


@pytest.fixture
def base(tiny_config, tmp_path):
    """Loads a tiny model, with the same weights every time."""

    def make(model_class):
        folder = tmp_path / "base"
        if not folder.exists():
            torch.manual_seed(0)
            model_class(tiny_config(num_labels=3)).save_pretrained(folder)
        return model_class.from_pretrained(folder)

    return make


def lora(model_class, **changes):
    from peft import LoraConfig

    head = ["head"] if model_class is MAEForImageClassification else None
    return LoraConfig(target_modules=["qkv"], r=4, lora_alpha=8, modules_to_save=head, **changes)


def train(model, inputs):
    """Train for fifteen steps; return the losses of the first and the last."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    model.train()
    for _ in range(15):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses[0], losses[-1]


@pytest.fixture
def trained(base):
    """Trains an adapter of peft; returns the model with it, and the weights from before."""
    from peft import get_peft_model

    def make(model_class):
        model = base(model_class)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        torch.manual_seed(0)
        adapted = get_peft_model(model, lora(model_class))
        first, last = train(adapted, INPUTS[model_class])
        assert last < 0.95 * first
        return adapted, before

    return make


def logits(model, model_class):
    with torch.no_grad():
        return model(**INPUTS[model_class]).logits


@both_models
def test_training_changes_the_adapter_and_nothing_else(trained, model_class):
    model, before = trained(model_class)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in names if ".attn.qkv.lora_A." in name or ".attn.qkv.lora_B." in name}
    heads = {f"base_model.model.head.modules_to_save.default.{name}" for name in ("weight", "bias")}
    assert len(adapters) == 2 * (4 if model_class is MAEForPreTraining else 2)  # decoder blocks too
    assert names == adapters | (heads if model_class is MAEForImageClassification else set())
    after = {name.replace("base_layer.", ""): value for name, value in model.base_model.model.state_dict().items()}
    after = {name.replace("original_module.", ""): value for name, value in after.items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())  # among them the position embeddings


@both_models
def test_merged_model_is_a_plain_one_that_gives_the_same_numbers(trained, model_class, tmp_path):
    model, before = trained(model_class)
    expected = logits(model, model_class)
    merged = model.merge_and_unload()
    assert type(merged) is model_class and merged.state_dict().keys() == before.keys()
    assert_close(logits(merged, model_class), expected, atol=1e-5, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    loaded = model_class.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(loaded, model_class), logits(merged, model_class))


@both_models
def test_saved_adapter_gives_the_same_numbers_to_the_bit(base, trained, model_class, tmp_path):
    from peft import PeftModel

    model, _ = trained(model_class)
    model.save_pretrained(tmp_path / "adapter")
    assert {file.name for file in (tmp_path / "adapter").glob("*.safetensors")} == {"adapter_model.safetensors"}
    for loaded in (
        PeftModel.from_pretrained(base(model_class), tmp_path / "adapter").eval(),
        model_class.from_pretrained(tmp_path / "adapter"),  # transformers finds the base model of the adapter
    ):
        assert torch.equal(logits(loaded, model_class), logits(model, model_class))
    assert not torch.equal(logits(base(model_class), model_class), logits(model, model_class))


@both_models
def test_adapter_of_transformers_trains_and_comes_back(base, model_class, tmp_path):
    model = base(model_class)
    torch.manual_seed(0)
    model.add_adapter(lora(model_class))
    first, last = train(model, INPUTS[model_class])
    assert last < 0.95 * first
    assert torch.equal(model.mae.pos_embed, base(model_class).mae.pos_embed)
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    added = base(model_class)
    added.load_adapter(tmp_path / "adapter")
    for loaded in (added.eval(), model_class.from_pretrained(tmp_path / "adapter")):
        assert torch.equal(logits(loaded, model_class), logits(model, model_class))


@both_models
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_no_bit_of_an_adapter_s_gradient(base, model_class, use_reentrant):
    from peft import get_peft_model

    gradients = []
    for checkpointing in (False, True):
        model = base(model_class)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        torch.manual_seed(0)
        adapted = get_peft_model(model, lora(model_class, init_lora_weights=False)).train()
        adapted(**INPUTS[model_class]).loss.backward()
        gradients.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    assert all(gradient is not None and gradient.any() for gradient in gradients[0].values())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
