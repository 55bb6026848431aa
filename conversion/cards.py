"""Model cards: one for each size, and one in each converted folder, from one template."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import Tensor

from mae_hf.configuration_mae import PRESETS, MAEConfig
from mae_hf.modeling_mae import NO_DECODER

from .catalogue import LICENSE, Release, is_proven, recognised_by
from .config import NUM_IMAGENET_CLASSES
from .kinds import CLASSIFIERS, DESCRIPTIONS
from .layouts import TIMM, VIT_MAE
from .source import Source
from .targets import auto_class, class_name, kind_written
from .tensors import count_parameters

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
class Provenance:
    """Where a converted folder comes from.

    Attributes:
        source: What was read.
        md5s: md5 of each file by its name.
        release: The released file that it is, or None.
        license: Of the weights.
        norm_pix_loss_from: Where that comes from.
        dtype: What the weights were cast to, or None.
    """

    source: Source
    md5s: Mapping[str, str]
    release: Release | None
    license: str
    norm_pix_loss_from: str
    dtype: torch.dtype | None = None

    @property
    def recognised_by(self) -> str:
        """What the released file was recognised by."""
        return recognised_by(self.release, self.md5s) if self.release else ""

    @property
    def is_changed(self) -> bool:
        """Whether the file bears the name of a release with another md5 than the published one."""
        return bool(self.release and self.release.md5_prefix and not is_proven(self.release, self.md5s))

    @property
    def accuracy(self) -> tuple[float, float] | None:
        """Published top-1 and top-5, if a published md5 proves that these are the weights."""
        if self.release and self.dtype is None and is_proven(self.release, self.md5s):
            return self.release.accuracy
        return None


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
        provenance=None,
        limits=[
            _NO_DECODER.format(f"`mae_pretrain_vit_{preset}.pth`"),
            f"`mae_pretrain_vit_{preset}_full.pth` was trained on normalised pixels. {_NORMALISED}",
            "The weights know ImageNet-1k photographs; what they encode elsewhere is for you to find out.",
            _NO_CLASSES,
        ],
        licence=f"The released weights are under {LICENSE}, the licence of the official repository.",
    )


def folder_card(layout: str, config: MAEConfig, provenance: Provenance, weights: Mapping[str, Tensor]) -> ModelCard:
    """The card of a converted folder: what the weights are, where they come from, what they cannot do.

    Args:
        layout: Of the folder.
        config: Of the model.
        provenance: Where it comes from.
        weights: What the folder holds.
    """
    source, kind = provenance.source, kind_written(layout, provenance.source.kind)
    name, accuracy = Path(source.name).name.removesuffix(".pth"), provenance.accuracy
    data = ModelCardData(
        license=provenance.license,
        library_name="timm" if layout == TIMM else "transformers",
        pipeline_tag="image-classification" if kind in CLASSIFIERS else "image-feature-extraction",
        tags=_TAGS,
        datasets=["imagenet-1k"] if provenance.release and not provenance.is_changed else None,
        model_name=name if accuracy else None,
        eval_results=_results(*accuracy) if accuracy else None,
    )
    has_decoder = any(key.startswith("decoder") for key in weights)
    with_code = hasattr(config, "auto_map")
    ours = (
        "The package `mae_hf` itself, whose code lies in this folder," if with_code else "The package `mae_hf` itself"
    )
    return ModelCard.from_template(
        data,
        template_path=str(CARDS / "template.md"),
        title=name,
        summary=f"Masked autoencoder (He et al. 2021, arXiv:2111.06377): {DESCRIPTIONS[kind]}.",
        code=_code(layout, kind, with_code),
        table=_folder_table(config, has_decoder, weights),
        provenance=provenance,
        accuracy=accuracy,
        config=config,
        kind=DESCRIPTIONS[kind],
        decoder_left_out=kind != source.kind,
        predicts=has_decoder,
        limits=_limits(layout, config, provenance, has_decoder),
        licence=f"Licence of the weights: {provenance.license}. {ours} is under Apache-2.0.",
    )


def _results(top1: float, top5: float) -> list[EvalResult]:
    return [
        EvalResult("image-classification", "imagenet-1k", "ImageNet-1k", "accuracy", value, metric_name=name)
        for name, value in (("Top-1 accuracy, %", top1), ("Top-5 accuracy, %", top5))
    ]


def _code(layout: str, kind: str, with_code: bool) -> str:
    if layout == TIMM:
        return 'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True)'
    library, name = "transformers" if layout == VIT_MAE else "mae_hf", class_name(layout, kind)
    code = f'from {library} import {name}\n\nmodel = {name}.from_pretrained("FOLDER")'
    if with_code:
        name = auto_class(kind)
        code += "\n\n# where mae_hf is not installed, with the code in the folder\n"
        code += f'from transformers import {name}\n\nmodel = {name}.from_pretrained("FOLDER", trust_remote_code=True)'
    return code


def _limits(layout: str, config: MAEConfig, provenance: Provenance, has_decoder: bool) -> list[str]:
    kind = provenance.source.kind
    if kind in CLASSIFIERS:
        limits = ["It does not reconstruct: it has a head in place of a decoder."]
        if config.num_labels == NUM_IMAGENET_CLASSES and not provenance.release:
            limits.append(
                "Its classes bear the names of ImageNet-1k if the source had none, as there are 1000 of them."
            )
    else:
        limits = [_NORMALISED] if config.norm_pix_loss and has_decoder else []
        limits = [*([] if has_decoder else [_NO_DECODER.format("It")]), *limits, _NO_CLASSES]
    if provenance.release is None:
        limits.append("What it was trained on, and how well, the source does not tell.")
    if layout == TIMM:
        limits.append("That timm loads it has not been tried; keys, shapes and config are those of its `.mae` models.")
    return limits


def _folder_table(config: MAEConfig, has_decoder: bool, weights: Mapping[str, Tensor]) -> str:
    decoder = f"{config.decoder_hidden_size}, {config.decoder_num_hidden_layers}, {config.decoder_num_attention_heads}"
    rows = {
        "image size": config.image_size,
        "patch": config.patch_size,
        "channels": config.num_channels,
        "width, depth, heads": f"{config.hidden_size}, {config.num_hidden_layers}, {config.num_attention_heads}",
        "decoder width, depth, heads": decoder if has_decoder else "none",
        "parameters": f"{count_parameters(weights):,}",
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
