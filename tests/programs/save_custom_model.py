"""Save a model of a custom class with its code and load it with this code: `save_custom_model.py FOLDER`."""

import sys

import transformers
from custom.modeling_custom import CustomConfig, CustomModel

if __name__ == "__main__":
    CustomConfig.register_for_auto_class()
    CustomModel.register_for_auto_class("AutoModel")
    config = CustomConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    CustomModel(config).save_pretrained(sys.argv[1])
    model = transformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
    assert model.answer == 7
    assert list(model.config.auto_map) == ["AutoConfig", "AutoModel"], model.config.auto_map
