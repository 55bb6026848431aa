"""Model cards: one for each size, and one in each converted folder, from one template."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from mae_hf.configuration_mae import PRESETS, MAEConfig
from mae_hf.modeling_mae import NO_DECODER

from .catalogue import LICENSE, Release
from .official import DESCRIPTIONS, ENCODER, MODEL_CLASSES

CARDS = Path(__file__).resolve().parent.parent / "model_cards"  # beside this package, in a checkout and in a wheel
_TAGS = ["mae", "masked-autoencoder", "self-supervised-learning", "vision"]
_NO_DECODER = f"{{}} neither reconstructs nor gives a pretraining loss: it is {NO_DECODER}."
_NORMALISED = (
    "It predicts patches without their brightness and contrast: pictures need the mean and deviation of each patch in "
    "the original."
)
_NO_CLASSES = "It does not classify: it has no head."
_ROWS = {
    "patch": "patch",
    "width, depth, heads": "encoder",
    "decoder width, depth, heads": "decoder",
    "MLP ratio": "mlp_ratio",
    "patches at 224": "patches",
    "parameters, encoder": "encoder_parameters",
    "parameters, whole model": "parameters",
    "encoder GFLOPs (a multiply-add is two), unmasked": "gflops_unmasked",
    "… mask ratio 0.75": "gflops_masked",
    "memory of one forward, batch 1, MB": "memory_mb",
    "largest difference from the official implementation: latent": "latent",
    "… pred": "pred",
    "… loss": "loss",
}


@dataclass(frozen=True)
class Source:
    """Where a converted folder comes from."""

    name: str
    md5: str
    kind: str
    release: Release | None
    license: str | None
    norm_pix_loss_from: str
    checksummed: bool
    dtype: torch.dtype | None


def measurements() -> dict[str, dict[str, Any]]:
    """What `make parity` found for each size when the cards were last written."""
    found: dict[str, dict[str, Any]] = json.loads((CARDS / "parity.json").read_text())
    return found


def size_table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table with a column for each size and the rows that README and cards show."""
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for label, field in _ROWS.items():
        lines.append(f"| {label} | {' | '.join(_text(column[field]) for column in columns.values())} |")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1e}" if isinstance(value, float) and 0 < value < 0.01 else str(value).removesuffix(".0")


def size_card(preset: str) -> ModelCard:
    """The card of one size of the paper."""
    data = ModelCardData(license=LICENSE, library_name="transformers", tags=_TAGS, datasets=["imagenet-1k"])
    code = f"""# after: mae-hf convert mae_visualize_vit_{preset}.pth ./mae-vit-{preset}
from mae_hf import MAEForPreTraining, reconstruct

model = MAEForPreTraining.from_pretrained("./mae-vit-{preset}")
original, masked, reconstruction, pasted = reconstruct(model, "photo.jpg")"""
    return ModelCard.from_template(
        data,
        template_path=str(CARDS / "template.md"),
        title=f"MAE ViT-{preset.capitalize()}",
        summary=(
            f"Masked autoencoder of size ViT-{preset.capitalize()}/{PRESETS[preset]['patch_size']} "
            "(He et al. 2021, arXiv:2111.06377), for weights converted with `mae_hf` from the official files."
        ),
        code=code,
        table=size_table({preset: measurements()[preset]}),
        source=None,
        limits=[
            _NO_DECODER.format(f"`mae_pretrain_vit_{preset}.pth`"),
            f"`mae_pretrain_vit_{preset}_full.pth` was trained on normalised pixels. {_NORMALISED}",
            "The weights know ImageNet-1k photographs; what they encode elsewhere is for you to find out.",
            _NO_CLASSES,
        ],
        licence=f"The released weights are under {LICENSE}, the licence of the official repository.",
    )


def folder_card(config: MAEConfig, source: Source, parameters: int) -> ModelCard:
    """The card of a converted folder: what the weights are, where they come from, what they cannot do."""
    licence = LICENSE if source.release else source.license or "other"
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=_TAGS,
        datasets=["imagenet-1k"] if source.release else None,
    )
    model_class = MODEL_CLASSES[source.kind].__name__
    limits = [_NO_DECODER.format("It")] if source.kind == ENCODER else [_NORMALISED] if config.norm_pix_loss else []
    if source.release is None:
        limits.append("What it was trained on, and how well, the file does not tell.")
    return ModelCard.from_template(
        data,
        template_path=str(CARDS / "template.md"),
        title=Path(source.name).stem,
        summary=f"Masked autoencoder (He et al. 2021, arXiv:2111.06377): {DESCRIPTIONS[source.kind]}.",
        code=f'from mae_hf import {model_class}\n\nmodel = {model_class}.from_pretrained("FOLDER")',
        table=_folder_table(config, source.kind, parameters),
        source=source,
        config=config,
        kind=DESCRIPTIONS[source.kind],
        limits=[*limits, _NO_CLASSES],
        licence=f"Licence of the weights: {licence}. The package `mae_hf` itself is under Apache-2.0.",
    )


def _folder_table(config: MAEConfig, kind: str, parameters: int) -> str:
    rows = {
        "image size": config.image_size,
        "patch": config.patch_size,
        "channels": config.num_channels,
        "width, depth, heads": f"{config.hidden_size}, {config.num_hidden_layers}, {config.num_attention_heads}",
        "decoder width, depth, heads": "none"
        if kind == ENCODER
        else f"{config.decoder_hidden_size}, {config.decoder_num_hidden_layers}, {config.decoder_num_attention_heads}",
        "parameters": f"{parameters:,}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def with_table(readme: str) -> str:
    """The text of the README with its table of sizes made new."""
    marks = r"(<!-- sizes -->\n).*?(\n<!-- /sizes -->)"
    return re.sub(marks, lambda found: found[1] + size_table(measurements()) + found[2], readme, flags=re.DOTALL)


def write_cards() -> None:
    """Write the cards of the sizes and the table of the README, in a checkout."""
    for preset in PRESETS:
        size_card(preset).save(CARDS / f"mae-vit-{preset}.md")
    readme = CARDS.parent / "README.md"
    readme.write_text(with_table(readme.read_text()))
