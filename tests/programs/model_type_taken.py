"""Load a folder with code where a class of transformers has the model type "mae": `model_type_taken.py FOLDER`.

The code of the folder comes before the class of transformers, and so does the package, once it is imported.
"""

import sys

import transformers
from transformers.models import vit_mae
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

NAMES = ("AutoModel", "AutoModelForPreTraining", "AutoModelForImageClassification")


def register_vit_mae_as_mae():
    CONFIG_MAPPING._mapping["mae"] = "ViTMAEConfig"
    CONFIG_MAPPING._modules["mae"] = vit_mae
    MODEL_MAPPING._model_mapping["mae"] = "ViTMAEModel"
    MODEL_MAPPING._modules["mae"] = vit_mae
    vit_mae.ViTMAEConfig.model_type = "mae"
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model("mae"))
    assert type(model) is transformers.ViTMAEModel


def load_by_the_code_of_the_folder(folder):
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules."), type(config)
    for name in NAMES:
        model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)


def load_by_the_package(folder):
    import mae_hf

    config = transformers.AutoConfig.from_pretrained(folder)
    assert type(config) is mae_hf.MAEConfig, type(config)
    for name in NAMES:
        model = getattr(transformers, name).from_pretrained(folder)
        assert type(model).__module__ == "mae_hf.modeling_mae", type(model)
    assert type(transformers.AutoBackbone.from_config(config)) is mae_hf.MAEBackbone


if __name__ == "__main__":
    register_vit_mae_as_mae()
    load_by_the_code_of_the_folder(sys.argv[1])
    load_by_the_package(sys.argv[1])
