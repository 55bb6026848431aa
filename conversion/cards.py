"""The model card of a converted folder, and recognising by it what a conversion wrote."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import Tensor

from mae_hf.checkpoint import CheckpointError, read_checkpoint, read_config
from mae_hf.decoder import NO_DECODER
from mae_hf.remote_code import code_files

from .inference import CLASSIFIERS, DESCRIPTIONS, ENCODER, NUM_IMAGENET_CLASSES, PRETRAINING, count_parameters
from .layouts import LAYOUTS, recognise_layout
from .releases import release_of_name
from .source import Converted

CARDS = Path(__file__).resolve().parent.parent / "model_cards"  # beside this package, in a checkout and in a wheel
TAGS = ["mae", "masked-autoencoder", "self-supervised-learning", "vision"]
WITHOUT_DECODER = f"{{}} neither reconstructs nor gives a pretraining loss: it has {NO_DECODER}."
NORMALISED = (
    "It predicts patches without their brightness and contrast: images need the mean and standard deviation of each "
    "patch of the original."
)
NO_CLASSES = "It does not classify: it has no head."
_MARK = "mae_hf"  # `converted_with` in the metadata of every card written here
_WRITTEN = re.compile(
    r"config\.json|preprocessor_config\.json|README\.md|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)


def folder_card(done: Converted, weights: Mapping[str, Tensor]) -> ModelCard:
    """Make the card of a converted folder: what the weights are, where they come from, what they cannot do.

    Args:
        done: What was converted.
        weights: What the folder holds.
    """
    release, config = done.release, done.config
    confirmed = release is not None and release.matches(done.md5s)
    accuracy = release.accuracy if release and confirmed and done.dtype is None else None
    name = Path(done.source.name).name.removesuffix(".pth")
    data = ModelCardData(
        license=done.license,
        library_name=done.layout.library_name,
        pipeline_tag="image-classification" if done.kind in CLASSIFIERS else "image-feature-extraction",
        tags=TAGS,
        datasets=["imagenet-1k"] if release and (confirmed or not release.md5_prefix) else None,
        model_name=name if accuracy else None,
        eval_results=[
            EvalResult("image-classification", "imagenet-1k", "ImageNet-1k", "accuracy", value, metric_name=f"{top}, %")
            for top, value in zip(("Top-1 accuracy", "Top-5 accuracy"), accuracy or (), strict=False)
        ]
        or None,
        converted_with=_MARK,
    )
    with_code = hasattr(config, "auto_map")
    limits = {
        PRETRAINING: [NORMALISED, NO_CLASSES] if config.norm_pix_loss else [NO_CLASSES],
        ENCODER: [WITHOUT_DECODER.format("It"), NO_CLASSES],
    }.get(done.kind, ["It does not reconstruct: it has a head instead of a decoder."])
    return ModelCard.from_template(
        data,
        template_path=str(CARDS / "template.md"),
        title=name,
        summary=f"Masked autoencoder (He et al. 2021, arXiv:2111.06377): {DESCRIPTIONS[done.kind]}.",
        done=done,
        config=config,
        kind=DESCRIPTIONS[done.kind],
        has_decoder=done.kind == PRETRAINING,
        is_imagenet=done.kind in CLASSIFIERS and config.num_labels == NUM_IMAGENET_CLASSES,
        num_parameters=count_parameters(weights),
        with_code=with_code,
        auto_class=done.layout.auto_class(done.kind) if with_code else None,
        accuracy=accuracy,
        limits=[*limits, *done.layout.limits],
    )


def refuse_to_replace(destination: Path) -> str | None:
    """Say why an existing file or folder may not be replaced, or None if a conversion wrote it and nothing else."""
    code: list[str] = []
    if destination.is_file():
        return None if _is_converted_file(destination) else "was not written by a conversion"
    with suppress(CheckpointError):
        code = [file.name for file in code_files()] if "auto_map" in read_config(destination) else []
    foreign = [
        path.name
        for path in sorted(destination.iterdir())
        if not (path.is_file() and (_WRITTEN.fullmatch(path.name) or path.name in code))
    ]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        return f"contains {', '.join(foreign[:3])}{more}, which no conversion writes"
    return None if _is_converted_folder(destination) else "was not written by a conversion"


def _is_converted_file(file: Path) -> bool:
    """Whether a file holds official weights and nothing else, and does not have the name of a released file."""
    with suppress(CheckpointError):
        found = read_checkpoint(file)
        recognise_layout(found.state_dict)
        return found.wrapper == "model" and not found.others and release_of_name(file.stem) is None
    return False


def _is_converted_folder(folder: Path) -> bool:
    with suppress(Exception):  # card and config may hold anything
        data = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict()
        config = read_config(folder)
        return data.get("converted_with") == _MARK and any(x.is_config(config) for x in LAYOUTS.values())
    return False
