"""Pretrain a masked autoencoder on a folder of images, with the official recipe.

    python examples/pretrain.py --images IMAGES --output_dir OUT --model base --norm_pix_loss --bf16 \
        --per_device_train_batch_size 64 --gradient_accumulation_steps 64

To train on several devices, start it with `torchrun` or `accelerate launch` instead of `python`: docs/train.md.
The same command again resumes from the last checkpoint.
"""

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from PIL import Image
from torch import Tensor
from transformers import TrainerCallback, set_seed

from images import ImageFolder, crop_and_flip, evaluation_transform, to_tensor
from mae_hf import MAEConfig, MAEForPreTraining, reconstruct
from mae_hf.configuration_mae import PRESETS
from mae_hf.image_processor import image_processor
from mae_hf.masking import MASKS
from mae_hf.patch_embed import to_pair
from mae_hf.reconstruction import draw_panels, open_image
from mae_hf.training import MaskingCollator
from recipe import Recipe, RecipeTrainer, main, train


@dataclass
class PreTraining(Recipe):
    """Pretrain a masked autoencoder. Apart from --norm_pix_loss and the batch, the defaults are the official recipe."""

    model: str = field(
        default="base",
        metadata={"help": f"{', '.join(PRESETS)} (randomly initialised), or a folder or Hub id to continue from."},
    )
    config: str = field(default="{}", metadata={"help": "MAEConfig fields of a randomly initialised model, as JSON."})
    norm_pix_loss: bool | None = field(
        default=None, metadata={"help": "Predict per-patch normalised pixels.", "nargs": "?", "const": True}
    )
    mask: str = field(default="random", metadata={"help": "Masking strategy.", "choices": list(MASKS)})
    pictures: list[str] = field(default_factory=list, metadata={"help": "Images to save reconstructions of."})
    picture_steps: int = field(default=1000, metadata={"help": "Steps between reconstructions in OUT/pictures."})
    num_train_epochs: float = field(default=800, metadata={"help": "Epochs; the released weights: 1600."})
    warmup_epochs: float = field(default=40, metadata={"help": "Epochs over which the learning rate rises from 0."})
    base_learning_rate: float = field(default=1.5e-4, metadata={"help": "Learning rate for an effective batch of 256."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay, except for biases and norms."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Second beta of AdamW."})

    def __post_init__(self):
        super().__post_init__()
        self.label_names = ["pixel_values"]  # otherwise evaluation looks for labels
        self.prediction_loss_only = True


class SaveReconstructions(TrainerCallback):
    """Save reconstructions of some images every few steps, with the same patches masked each time.

    Args:
        images: Image files.
        every: Steps between reconstructions; there is one after the last step too.
        mask: Masking strategy.
    """

    def __init__(self, images: list[str], every: int, mask: str = "random") -> None:
        self.images = [open_image(image) for image in images]
        self.every = every
        self.mask = mask

    def on_train_begin(self, args, state, control, model, **kwargs):
        if not isinstance(model, MAEForPreTraining):
            raise ValueError(
                f"--pictures does not work with {type(model).__name__}: omit --pictures or, with FSDP, --torch_compile"
            )

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        rows = [reconstruct(model, image, mask=self.mask) for image in self.images]  # all processes: FSDP needs them
        if state.is_world_process_zero:
            folder = Path(args.output_dir, "pictures")
            folder.mkdir(exist_ok=True)
            columns = ("original", "masked", "reconstruction", "pasted")
            draw_panels(rows, columns, f"step {state.global_step}").save(folder / f"{state.global_step:07}.png")


def pretraining_transform(image: Image.Image, rng: Random, size: tuple[int, int], recipe: PreTraining) -> Tensor:
    """Apply a random resized crop and a flip; returns `(3, H, W)`."""
    return to_tensor(crop_and_flip(image, rng, size, recipe.min_crop, recipe.flip))


def make_model(recipe: PreTraining) -> MAEForPreTraining:
    """Create a randomly initialised model, or load one from a folder or the Hub.

    Raises:
        ValueError: If `recipe.config` is not JSON, has wrong fields, or is given for a model that is loaded.
    """
    try:
        fields = dict(json.loads(recipe.config))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--config must be JSON such as '{{\"image_size\": 64}}', got {recipe.config!r}") from error
    if fields and recipe.model not in PRESETS:
        raise ValueError(f"--config needs --model to be one of {', '.join(PRESETS)}: {recipe.model} has a config.json")
    if recipe.norm_pix_loss is not None:
        fields["norm_pix_loss"] = recipe.norm_pix_loss
    set_seed(recipe.seed)
    if recipe.model in PRESETS:
        return MAEForPreTraining(MAEConfig.from_preset(recipe.model, **fields))
    return MAEForPreTraining.from_pretrained(recipe.model, **fields)


def pretrain(recipe: PreTraining) -> None:
    """Train a masked autoencoder on the images of the recipe."""
    model = make_model(recipe)
    size = to_pair(model.config.image_size)
    callbacks = []
    if recipe.pictures:
        callbacks.append(SaveReconstructions(recipe.pictures, recipe.picture_steps, recipe.mask))
    trainer = RecipeTrainer(
        model,
        recipe,
        MaskingCollator(model.config, mask=recipe.mask, seed=recipe.seed),
        ImageFolder(recipe.images, partial(pretraining_transform, size=size, recipe=recipe), recipe.seed, train=True),
        ImageFolder(recipe.validation, partial(evaluation_transform, size=size)) if recipe.validation else None,
        processing_class=image_processor(model.config),
        callbacks=callbacks,
    )
    train(trainer)


if __name__ == "__main__":
    sys.exit(main(PreTraining, pretrain))
