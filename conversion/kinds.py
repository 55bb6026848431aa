"""The kinds of weights, and the model that each belongs to."""

from collections.abc import Collection

from mae_hf.modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel
from mae_hf.pretrained import MAEPreTrainedModel

PRETRAINING, ENCODER = "pretraining", "encoder"
FINETUNED, FINETUNED_CLS, LINPROBE = "finetuned", "finetuned_cls", "linprobe"
DESCRIPTIONS = {
    PRETRAINING: "pretraining model, encoder and decoder",
    ENCODER: "encoder only, no decoder",
    FINETUNED: "classifier with mean pooling",
    FINETUNED_CLS: "classifier on the class token",
    LINPROBE: "linear probe",
}
CLASSIFIERS = (FINETUNED, FINETUNED_CLS, LINPROBE)
MODEL_CLASSES: dict[str, type[MAEPreTrainedModel]] = {
    PRETRAINING: MAEForPreTraining,
    ENCODER: MAEModel,
    **dict.fromkeys(CLASSIFIERS, MAEForImageClassification),
}


def kind_of(keys: Collection[str]) -> str:
    """Tell the kind of weights by the keys of the whole model, in any layout."""
    if any(key.startswith("head.") for key in keys):
        if "head.0.running_mean" in keys:
            return LINPROBE
        return FINETUNED if any(key.startswith("fc_norm.") for key in keys) else FINETUNED_CLS
    return PRETRAINING if any(key.startswith(("decoder_", "decoder.", "mask_token")) for key in keys) else ENCODER
