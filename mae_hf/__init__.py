"""Masked Autoencoders (He et al. 2021, arXiv:2111.06377) for the Hugging Face ecosystem."""

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from .attention import Attention
from .configuration_mae import MAEConfig
from .decoder import MAEDecoder
from .encoder import MAEEncoder
from .masking import DEFAULT_MASK_RATIO, block_masking, grid_masking, random_masking
from .modeling_mae import MAEBackbone, MAEForImageClassification, MAEForPreTraining, MAEModel
from .official.models_mae import (
    MAEViTBase,
    MAEViTHuge,
    MAEViTLarge,
    MaskedAutoencoder,
    mae_vit_base_patch16,
    mae_vit_huge_patch14,
    mae_vit_large_patch16,
)
from .official.registry import create_model, list_models
from .patch_embed import PatchEmbed, patchify, unpatchify
from .pos_embed import get_1d_sincos_pos_embed, get_2d_sincos_pos_embed, interpolate_pos_embed
from .pretrained import UntrainedWeightsWarning
from .reconstruction import reconstruct
from .transformer import Block, Mlp
from .vit_mae import load_vit_mae

AutoConfig.register("mae", MAEConfig, exist_ok=True)
AutoModel.register(MAEConfig, MAEModel, exist_ok=True)
AutoModelForPreTraining.register(MAEConfig, MAEForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(MAEConfig, MAEForImageClassification, exist_ok=True)
AutoBackbone.register(MAEConfig, MAEBackbone, exist_ok=True)

__all__ = [
    "DEFAULT_MASK_RATIO",
    "Attention",
    "Block",
    "MAEBackbone",
    "MAEConfig",
    "MAEDecoder",
    "MAEEncoder",
    "MAEForImageClassification",
    "MAEForPreTraining",
    "MAEModel",
    "MAEViTBase",
    "MAEViTHuge",
    "MAEViTLarge",
    "MaskedAutoencoder",
    "Mlp",
    "PatchEmbed",
    "UntrainedWeightsWarning",
    "block_masking",
    "create_model",
    "get_1d_sincos_pos_embed",
    "get_2d_sincos_pos_embed",
    "grid_masking",
    "interpolate_pos_embed",
    "list_models",
    "load_vit_mae",
    "mae_vit_base_patch16",
    "mae_vit_huge_patch14",
    "mae_vit_large_patch16",
    "patchify",
    "random_masking",
    "reconstruct",
    "unpatchify",
]
