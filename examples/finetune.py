"""Fine-tune a classifier from a pretrained folder, or train a linear probe on it, with the official recipes.

    python examples/finetune.py --model ./mae-vit-base --images TRAIN --validation VAL --output_dir OUT --bf16 \
        --per_device_train_batch_size 32 --gradient_accumulation_steps 32
    python examples/finetune.py --linear_probe ...

TRAIN and VAL hold a folder for each class. Settings that are not given are those of the model's size; models of other
sizes than the official ones get those of base. With `torchrun` or `accelerate launch` in the place of `python`, on many
devices: examples/README.md. The same command again resumes where the last checkpoint was written.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

import torch
from PIL import Image
from pytorch_optimizer import LARS
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction, Trainer, set_seed

from augmentation import mix, rand_augment, random_erasing
from images import ImageFolder, crop_and_flip, evaluation_transform, to_tensor
from mae_hf import MAEConfig, MAEForImageClassification
from mae_hf.configuration_mae import PRESETS
from mae_hf.image_processor import image_processor
from mae_hf.patch_embed import to_pair
from mae_hf.training import layer_decay_groups, seeded
from recipe import Recipe, RecipeTrainer, main, train

# FINETUNE.md in facebookresearch/mae, and the defaults of main_finetune.py and main_linprobe.py
FINE_TUNING = {
    "base": {"num_train_epochs": 100, "base_learning_rate": 5e-4, "layer_decay": 0.65, "drop_path": 0.1},
    "large": {"num_train_epochs": 50, "base_learning_rate": 1e-3, "layer_decay": 0.75, "drop_path": 0.2},
    "huge": {"num_train_epochs": 50, "base_learning_rate": 1e-3, "layer_decay": 0.75, "drop_path": 0.3},
    "any": {"warmup_epochs": 5, "weight_decay": 0.05, "min_learning_rate": 1e-6, "rand_augment": True}
    | {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25, "smoothing": 0.1},
}
LINEAR_PROBE = {
    "base": {"num_train_epochs": 90},
    "large": {"num_train_epochs": 50},
    "huge": {"num_train_epochs": 50},
    "any": {"warmup_epochs": 10, "weight_decay": 0.0, "min_learning_rate": 0.0, "rand_augment": False}
    | {"mixup": 0.0, "cutmix": 0.0, "erasing": 0.0, "smoothing": 0.0}
    | {"base_learning_rate": 0.1, "layer_decay": 1.0, "drop_path": 0.0},
}


@dataclass
class FineTuning(Recipe):
    """Fine-tune a classifier, or train a linear probe. What is not given follows the official recipe of the size."""

    model: str | None = field(default=None, metadata={"help": "Folder or Hub id of a pretrained model."})
    linear_probe: bool = field(default=False, metadata={"help": "Train the head alone, on the class token."})
    num_train_epochs: float | None = field(default=None, metadata={"help": "100 for base, 50 for large and huge."})
    warmup_epochs: float | None = field(default=None, metadata={"help": "5; linear probe: 10."})
    base_learning_rate: float | None = field(default=None, metadata={"help": "5e-4 for base, 1e-3; linear probe: 0.1."})
    min_learning_rate: float | None = field(default=None, metadata={"help": "Where the cosine ends: 1e-6."})
    weight_decay: float | None = field(default=None, metadata={"help": "0.05; linear probe: 0."})
    layer_decay: float | None = field(default=None, metadata={"help": "Of the rate, by layer: 0.65 for base, 0.75."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Half a cosine after the warm-up."})
    drop_path: float | None = field(default=None, metadata={"help": "0.1, 0.2, 0.3 for base, large and huge."})
    mixup: float | None = field(default=None, metadata={"help": "Alpha: 0.8."})
    cutmix: float | None = field(default=None, metadata={"help": "Alpha: 1.0."})
    erasing: float | None = field(default=None, metadata={"help": "Probability of random erasing: 0.25."})
    smoothing: float | None = field(default=None, metadata={"help": "Of labels: 0.1."})
    rand_augment: bool | None = field(default=None, metadata={"help": "rand-m9-mstd0.5-inc1."})
    min_crop: float = field(default=0.08, metadata={"help": "Least share of an image that a random crop takes."})

    def __post_init__(self):
        if self.model is None:
            raise ValueError("--model is missing: folder or Hub id of a pretrained model")
        width = MAEConfig.from_pretrained(self.model).hidden_size
        size = next((name for name, preset in PRESETS.items() if preset["hidden_size"] == width), "base")
        recipes = LINEAR_PROBE if self.linear_probe else FINE_TUNING
        for name, value in (recipes["any"] | recipes[size]).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "cosine_with_min_lr":
            self.lr_scheduler_kwargs = {"min_lr": self.min_learning_rate}
        super().__post_init__()
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be more than 0, got {self.learning_rate:g}")


class Mixing:
    """Stack samples to a batch; of those that train, mix the images and soften the labels.

    What is drawn for a batch belongs to its first sample, in its epoch.
    """

    def __init__(self, recipe: FineTuning, num_labels: int) -> None:
        self.recipe, self.num_labels = recipe, num_labels

    def __call__(self, samples: Sequence[dict]) -> dict[str, Tensor]:
        pixel_values = torch.stack([sample["pixel_values"] for sample in samples])
        labels = torch.tensor([sample["labels"] for sample in samples])
        epoch, recipe = samples[0]["epoch"], self.recipe
        if epoch is not None:
            rng = seeded(recipe.seed, "mix", epoch, samples[0]["index"])
            mixing = {"mixup": recipe.mixup, "cutmix": recipe.cutmix, "smoothing": recipe.smoothing}
            pixel_values, labels = mix(pixel_values, labels, self.num_labels, rng, **mixing)
        return {"pixel_values": pixel_values, "labels": labels}


class FineTuner(RecipeTrainer):
    """`Trainer` with the optimizer of the recipe, and cross entropy for soft labels.

    The model itself would take soft labels for several labels an image.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.args.linear_probe and self.is_fsdp_enabled:
            raise ValueError("--linear_probe trains a small head, by an optimizer for whole weights: leave out --fsdp")
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch; Trainer divides it by accumulation

    def create_optimizer(self, model=None):
        self.optimizer = self.optimizer or make_optimizer(self.args, model or self.model)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["pixel_values"])
        loss = cross_entropy(outputs.logits.float(), inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def fine_tuning_transform(image: Image.Image, rng: Random, size: tuple[int, int], recipe: FineTuning) -> Tensor:
    """Random resized crop, flip, RandAugment and random erasing; the last two as the recipe says."""
    image = crop_and_flip(image, rng, size, recipe.min_crop, recipe.flip)
    if recipe.rand_augment:
        image = rand_augment(image, rng)
    return random_erasing(to_tensor(image), rng, recipe.erasing)


def make_model(recipe: FineTuning, classes: Sequence[str]) -> MAEForImageClassification:
    """A classifier with the pretrained encoder and a new head."""
    set_seed(recipe.seed)
    return MAEForImageClassification.from_pretrained(
        recipe.model,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        drop_path_rate=recipe.drop_path,
        pooling="cls" if recipe.linear_probe else "mean",
        linear_probe=recipe.linear_probe,
        ignore_mismatched_sizes=True,  # the head of a classifier of other classes gives way to a new one
    )


def make_optimizer(recipe: FineTuning, model: MAEForImageClassification) -> torch.optim.Optimizer:
    """LARS for a linear probe, as officially; else what `--optim` says, AdamW by default, with layer-wise decay.

    With weight decay, which the recipe of the linear probe has not, this LARS takes other steps than the official one.
    """
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.linear_probe:
        return LARS(model.head.parameters(), lr=rate, weight_decay=decay, momentum=0.9)
    optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(recipe, model)
    return optimizer(layer_decay_groups(model, rate, decay, recipe.layer_decay), **settings)


def accuracies(predictions: EvalPrediction) -> dict[str, float]:
    """Top-1 and top-5 in percent, of the five likeliest classes."""
    hits = predictions.predictions == predictions.label_ids[:, None]  # images, 5
    return {"top1": 100 * hits[:, 0].mean().item(), "top5": 100 * hits.any(axis=1).mean().item()}


def finetune(recipe: FineTuning) -> None:
    """Train a classifier on the images of the recipe, and evaluate it on those of its validation."""
    size = to_pair(MAEConfig.from_pretrained(recipe.model).image_size)
    transform = partial(fine_tuning_transform, size=size, recipe=recipe)
    images = ImageFolder(recipe.images, transform, recipe.seed, train=True)
    transform = partial(evaluation_transform, size=size)
    validation = ImageFolder(recipe.validation, transform) if recipe.validation else None
    if not images.classes:
        raise ValueError(f"{recipe.images} needs a folder for each class, and no image beside them")
    if validation and validation.classes != images.classes:
        raise ValueError(f"{recipe.validation} has other classes than {recipe.images}")
    model = make_model(recipe, images.classes)
    trainer = FineTuner(
        model,
        recipe,
        Mixing(recipe, len(images.classes)),
        images,
        validation,
        processing_class=image_processor(model.config),
        compute_metrics=accuracies,
        preprocess_logits_for_metrics=lambda logits, labels: logits.topk(min(5, logits.shape[1])).indices,
    )
    train(trainer)


if __name__ == "__main__":
    sys.exit(main(FineTuning, finetune))
