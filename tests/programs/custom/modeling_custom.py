"""Classes derived from those of mae_hf."""

from mae_hf import MAEConfig, MAEModel

from .attention import ANSWER


class CustomConfig(MAEConfig):
    model_type = "custom"


class CustomModel(MAEModel):
    config_class = CustomConfig
    config: CustomConfig
    answer = ANSWER
