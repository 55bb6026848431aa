import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForImageClassification

from mae_hf import MAEForImageClassification, MAEModel, UntrainedWeightsWarning

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 1])
HEAD = {"head.weight", "head.bias"}
NEW = {  # missing keys of a pretrained encoder
    "mean": ({"pooling": "mean"}, HEAD | {"fc_norm.weight", "fc_norm.bias"}),
    "class token": ({"pooling": "cls"}, HEAD),
    "linear probe": (
        {"pooling": "cls", "linear_probe": True},
        {"head.1.weight", "head.1.bias"}
        | {f"head.0.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")},
    ),
}


@pytest.fixture
def classifier(tiny_config):
    """Makes a fresh tiny classifier of three classes."""

    def make(**changes):
        torch.manual_seed(0)
        return MAEForImageClassification(tiny_config(**{"num_labels": 3, **changes}))

    return make


@pytest.mark.parametrize("case", NEW)
@pytest.mark.parametrize("whole", [True, False])
def test_missing_keys_of_a_pretrained_folder_are_exactly_the_head(tiny_model, tmp_path, case, whole):
    fields, new = NEW[case]
    pretrained = tiny_model()
    (pretrained if whole else pretrained.mae).save_pretrained(tmp_path)
    model, info = MAEForImageClassification.from_pretrained(tmp_path, num_labels=3, output_loading_info=True, **fields)
    assert info["missing_keys"] == new and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(model.mae.pos_embed, pretrained.mae.pos_embed)
    assert model(IMAGES).logits.shape == (4, 3)


@pytest.mark.parametrize(("fields", "std"), [({}, 2e-5), ({"linear_probe": True}, 0.01)])
def test_new_head_has_the_official_small_weights(classifier, fields, std):
    *_, linear = classifier(num_labels=1000, **fields).head.modules()
    assert_close(linear.weight.std().item(), std, rtol=0.05, atol=0)
    assert not linear.bias.any()


def test_everything_is_trainable_in_a_classifier_also_after_loading(classifier, tmp_path):
    model = classifier()
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    for made in (MAEForImageClassification, AutoModelForImageClassification):
        loaded = made.from_pretrained(tmp_path)
        assert all(parameter.requires_grad for parameter in loaded.parameters())
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    loaded(IMAGES, labels=LABELS).loss.backward()
    assert loaded.mae.pos_embed.grad is not None


def test_linear_probe_trains_its_linear_layer_alone_also_after_loading(classifier, tmp_path):
    model = classifier(linear_probe=True, pooling="cls").train()
    model(IMAGES)  # the batch norm sees a batch
    model.save_pretrained(tmp_path)
    for probe in (model, MAEForImageClassification.from_pretrained(tmp_path)):
        trained = {name for name, parameter in probe.named_parameters() if parameter.requires_grad}
        assert trained == {"head.1.weight", "head.1.bias"}
        assert probe.head[0].num_batches_tracked == 1 and probe.head[0].running_mean.any()


def test_any_classifier_can_be_frozen_except_for_its_head(classifier):
    model = classifier()
    model.freeze_encoder()
    model(IMAGES, labels=LABELS).loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == HEAD


@pytest.mark.parametrize(
    ("fields", "labels", "loss"),
    [
        ({}, LABELS, torch.nn.functional.cross_entropy),
        ({}, torch.eye(3)[LABELS], torch.nn.functional.binary_cross_entropy_with_logits),
        ({"num_labels": 1}, torch.rand(4), lambda logits, labels: torch.nn.functional.mse_loss(logits[:, 0], labels)),
        ({"problem_type": "regression"}, torch.rand(4, 3), torch.nn.functional.mse_loss),
    ],
)
def test_loss_is_that_of_transformers_classifiers(classifier, fields, labels, loss):
    out = classifier(**fields)(IMAGES, labels=labels)
    assert_close(out.loss, loss(out.logits, labels))


def test_small_training_run_lowers_the_loss(classifier):
    model = classifier(drop_path_rate=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        loss = model(IMAGES, labels=LABELS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_drop_path_grows_linearly_and_acts_in_training_only(classifier):
    model = classifier(drop_path_rate=0.3, num_hidden_layers=4)
    assert_close([block.drop_path.rate for block in model.mae.encoder.blocks], [0.0, 0.1, 0.2, 0.3])
    torch.nn.init.normal_(model.head.weight)
    model.train()
    assert not torch.equal(model(IMAGES).logits, model(IMAGES).logits)
    model.eval()
    assert torch.equal(model(IMAGES).logits, model(IMAGES).logits)


def test_other_image_sizes_for_one_call_and_permanently(classifier):
    model = classifier().eval()
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, 48, 40)
    with pytest.raises(ValueError, match="48x40 pixels, the model expects 32x32"):
        model(images)
    once = model(images, interpolate_pos_encoding=True).logits
    model.set_image_size((48, 40))
    assert_close(model(images).logits, once)
    assert model.mae.pos_embed.requires_grad


def test_encoder_of_a_classifier_loads_without_the_head(classifier, tmp_path):
    model = classifier(pooling="cls")
    model.save_pretrained(tmp_path)
    encoder, info = MAEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_close(encoder(IMAGES).last_hidden_state, model.mae(IMAGES).last_hidden_state)


def test_encoder_of_a_classifier_with_mean_pooling_warns_about_the_missing_norm(classifier, tmp_path):
    classifier(pooling="mean").save_pretrained(tmp_path)
    with pytest.warns(UntrainedWeightsWarning, match="no norm after the last block"):
        MAEModel.from_pretrained(tmp_path)


def test_without_labels_the_head_gives_features(classifier):
    model = classifier(num_labels=0)
    assert torch.equal(model(IMAGES).logits, model.fc_norm(model.mae(IMAGES).pooler_output))
