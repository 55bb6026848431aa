"""Write the model card of every measured size, and the table of sizes in README.md.

    python -m scripts.size_cards

The measurements are those in model_cards/parity.json, which `python -m benchmarks.parity --write` updates.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from mae_hf.conversion.cards import CARDS, NO_CLASSES, NORMALISED, TAGS, WITHOUT_DECODER
from mae_hf.conversion.releases import Release

MEASUREMENTS = CARDS / "parity.json"
README = CARDS.parent / "README.md"
_ROWS = {  # label: key of a measurement
    "patch": "patch",
    "width, depth, heads": "encoder",
    "decoder width, depth, heads": "decoder",
    "MLP ratio": "mlp_ratio",
    "patches at 224": "patches",
    "parameters, encoder": "encoder_parameters",
    "parameters, whole model": "parameters",
    "encoder GFLOPs (a multiply-add is two), unmasked": "gflops_unmasked",
    "… mask ratio 0.75": "gflops_masked",
    "memory of one forward pass, batch 1, MB": "memory_mb",
    "largest difference from the official implementation: latent": "latent",
    "… pred": "pred",
    "… loss": "loss",
}


def measurements() -> dict[str, dict[str, Any]]:
    """Return the measurements of each size by its name, as `python -m benchmarks.parity --write` last wrote them."""
    found: dict[str, dict[str, Any]] = json.loads(MEASUREMENTS.read_text())
    return found


def size_table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table of measurements, with a column for each size."""
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for label, key in _ROWS.items():
        lines.append(f"| {label} | {' | '.join(_text(column[key]) for column in columns.values())} |")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1e}" if isinstance(value, float) and 0 < value < 0.01 else str(value).removesuffix(".0")


def size_card(size: str) -> ModelCard:
    """Return the model card of a measured size, for weights converted from the released files."""
    measured = measurements()[size]
    name = f"ViT-{size.capitalize()}"
    return ModelCard.from_template(
        ModelCardData(license=Release.license, library_name="transformers", tags=TAGS, datasets=["imagenet-1k"]),
        template_path=str(CARDS / "template.md"),
        title=f"MAE {name}",
        summary=(
            f"Masked autoencoder of size {name}/{measured['patch']} (He et al. 2021, arXiv:2111.06377), for weights "
            "converted with `mae_hf` from the official files."
        ),
        code=_code(size),
        table=size_table({size: measured}),
        done=None,
        limits=_limits(size),
        licence=f"The released weights are under {Release.license}, the licence of the official repository.",
    )


def _code(size: str) -> str:
    return f"""# after: mae-hf convert mae_visualize_vit_{size}.pth ./mae-vit-{size}
from mae_hf import MAEForPreTraining, reconstruct

model = MAEForPreTraining.from_pretrained("./mae-vit-{size}")
original, masked, reconstruction, pasted = reconstruct(model, "photo.jpg")"""


def _limits(size: str) -> list[str]:
    return [
        WITHOUT_DECODER.format(f"`mae_pretrain_vit_{size}.pth`"),
        f"`mae_pretrain_vit_{size}_full.pth` was trained on normalised pixels. {NORMALISED}",
        "The weights were trained on the photographs of ImageNet-1k; evaluate them before using them on other images.",
        NO_CLASSES,
    ]


def with_table(readme: str) -> str:
    """Return the text of a README with an updated table of sizes, between its two `sizes` comments."""
    marks = r"(<!-- sizes -->\n).*?(\n<!-- /sizes -->)"
    return re.sub(marks, lambda found: found[1] + size_table(measurements()) + found[2], readme, flags=re.DOTALL)


def write_cards(cards: Path = CARDS, readme: Path = README) -> None:
    """Write the card of each measured size to a folder, and update the table of a README."""
    for size in measurements():
        size_card(size).save(cards / f"mae-vit-{size}.md")
    readme.write_text(with_table(readme.read_text()))


if __name__ == "__main__":
    write_cards()
