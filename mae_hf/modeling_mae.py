"""Masked autoencoders as transformers models (He et al. 2021, figure 1).

Shapes: `B` batch, `C` channels, `H W` pixels, `P` patch side, `L` patches, `L_keep` visible patches, `D` width.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_mae import MAEConfig
from .decoder import MAEDecoder
from .encoder import MAEEncoder
from .masking import MaskingOutput, masking_from_bool, random_masking
from .patch_embed import PatchEmbed, check_images, grid_of, patch_statistics, patchify, unpatchify
from .pos_embed import get_2d_sincos_pos_embed, interpolate_pos_embed
from .pretrained import MAEPreTrainedModel

NO_DECODER = (
    "an encoder without a decoder (mae_visualize_vit_*.pth and mae_pretrain_vit_*_full.pth have one, for raw and for "
    "normalised pixels)"
)
_NO_NORM = (
    "have no norm after the last block (a classifier that pools the mean has none): the tokens get a new one, untrained"
)


@dataclass
class MAEModelOutput(ModelOutput):
    """Output of `MAEModel`.

    Attributes:
        last_hidden_state: `(B, 1 + L, D)`, the class token and all patches in image order; if masked,
            `(B, 1 + L_keep, D)`, the class token and the visible patches in ascending noise order.
        pooler_output: `(B, D)`, the mean of the patches or the class token, by `config.pooling`; None if masked.
        mask: `(B, L)`, 0 visible, 1 hidden; None if not masked.
        ids_restore: `(B, L)`, where each patch stands in the shuffled order; None if not masked.
        hidden_states: Input of the first block and output of each, if asked for.
        attentions: Attention weights of each block `(B, heads, N, N)`, if asked for ("eager" attention only).
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MAEForPreTrainingOutput(ModelOutput):
    """Output of `MAEForPreTraining`.

    Attributes:
        loss: Mean squared error over the hidden patches; None if none is hidden.
        logits: Predicted pixels of all patches in image order, `(B, L, P * P * C)`; normalised by patch if the model
            was trained with `norm_pix_loss`.
        mask: `(B, L)`, 0 visible, 1 hidden.
        ids_restore: `(B, L)`, where each patch stands in the shuffled order.
        hidden_states: Input of the first encoder block and output of each, if asked for.
        attentions: Attention weights of each encoder block, if asked for ("eager" attention only).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MAEModel(MAEPreTrainedModel):
    """The encoder with its tokens and positions: features of whole images, or of visible patches.

    Unless asked to mask, it is deterministic in eval mode and keeps image order, whatever `config.mask_ratio` is.

    Args:
        config: Configuration.
        final_norm: Normalise the tokens after the last block; classifiers that pool the mean do it after pooling.
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^fc_norm\.", r"^head\."]  # of the whole models' folders

    def __init__(self, config: MAEConfig, final_norm: bool = True) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(config.image_size, config.patch_size, config.num_channels, config.hidden_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        num_rows = 1 + self.patch_embed.num_patches
        self.pos_embed = nn.Parameter(torch.zeros(1, num_rows, config.hidden_size), requires_grad=False)
        self.encoder = MAEEncoder(
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            Fraction(config.intermediate_size, config.hidden_size),
            qkv_bias=config.qkv_bias,
            drop=config.hidden_dropout_prob,
            attn_drop=config.attention_probs_dropout_prob,
            drop_path_rate=config.drop_path_rate,
            act=config.hidden_act,
            eps=config.layer_norm_eps,
            final_norm=final_norm,
        )
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        mask_ratio: float | None = None,
        bool_masked_pos: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MAEModelOutput:
        """Encode images (section 3).

        Args:
            pixel_values: Images, `(B, C, H, W)`, normalised as the processor does it.
            noise: `(B, L)`; hides the patches with the largest values, by `mask_ratio` (None: `config.mask_ratio`).
            interpolate_pos_encoding: Accept images of another size, with positions resized for this call.
            mask_ratio: Share of patches to hide, in [0, 1).
            bool_masked_pos: `(B, L)`, True is hidden, the same number in every row; wins over the other two.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            Features of all patches in image order; of the visible ones, if any of the three is given.

        Raises:
            ValueError: If images, noise, ratio or mask do not fit.
        """
        self._check_images(pixel_values, interpolate_pos_encoding)
        grid_size = grid_of((pixel_values.shape[2], pixel_values.shape[3]), self.config.patch_size)
        positions = interpolate_pos_embed(self.pos_embed, self.patch_embed.grid_size, grid_size)
        patches = self.patch_embed(pixel_values) + positions[:, 1:]  # B L D
        masked = self._hide(patches, mask_ratio, noise, bool_masked_pos)
        visible = patches if masked is None else masked.x_masked  # B L_keep D
        cls_tokens = (self.cls_token + positions[:, :1]).expand(visible.shape[0], -1, -1)
        tokens = self.encoder(torch.cat([cls_tokens, visible], dim=1), **kwargs)  # B 1+L_keep D
        if masked is not None:
            return MAEModelOutput(tokens, mask=masked.mask, ids_restore=masked.ids_restore)
        return MAEModelOutput(tokens, tokens[:, 0] if self.config.pooling == "cls" else tokens[:, 1:].mean(dim=1))

    def _hide(
        self, patches: Tensor, mask_ratio: float | None, noise: Tensor | None, bool_masked_pos: Tensor | None
    ) -> MaskingOutput | None:
        if bool_masked_pos is not None:
            return masking_from_bool(patches, bool_masked_pos)
        if mask_ratio is None and noise is None:
            return None
        return random_masking(patches, self.config.mask_ratio if mask_ratio is None else mask_ratio, noise)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module; the token and the table are this model's own."""
        super()._init_weights(module)
        if module is self:  # inside a whole model too: transformers asks each model for its own modules
            initialization.normal_(self.cls_token, std=self.config.initializer_range)
            table = get_2d_sincos_pos_embed(self.pos_embed.shape[-1], self.patch_embed.grid_size, cls_token=True)
            initialization.copy_(self.pos_embed, table)

    def _check_images(self, pixel_values: Tensor, any_size: bool) -> None:
        check_images(pixel_values, self.config.num_channels)
        size, expected = tuple(pixel_values.shape[2:]), self.patch_embed.img_size
        if not any_size and size != expected:
            raise ValueError(
                f"the images have {size[0]}x{size[1]} pixels, the model expects {expected[0]}x{expected[1]}: resize "
                f"them, or pass interpolate_pos_encoding=True, or call model.set_image_size({size}) once"
            )

    @torch.no_grad()
    def _resize(self, image_size: int | tuple[int, int]) -> None:
        grid_size = self.patch_embed.grid_size
        self.patch_embed.set_image_size(image_size)
        table = interpolate_pos_embed(self.pos_embed, grid_size, self.patch_embed.grid_size)
        self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)

    def _lack(self, missing_keys: set[str]) -> str | None:
        return _NO_NORM if {"encoder.norm.weight", "encoder.norm.bias"} <= missing_keys else None


class MAEForPreTraining(MAEPreTrainedModel):
    """The whole masked autoencoder: hide patches, encode the rest, predict the hidden pixels (figure 1)."""

    _no_split_modules = ["Block", "MAEDecoder"]

    def __init__(self, config: MAEConfig) -> None:
        super().__init__(config)
        self.mae = MAEModel(config)
        self.decoder = MAEDecoder(
            config.hidden_size,
            config.decoder_hidden_size,
            self.mae.patch_embed.num_patches,
            config.patch_size,
            config.num_channels,
            config.decoder_num_hidden_layers,
            config.decoder_num_attention_heads,
            Fraction(config.decoder_intermediate_size, config.decoder_hidden_size),
            grid_size=config.grid_size,
            qkv_bias=config.qkv_bias,
            drop=config.hidden_dropout_prob,
            attn_drop=config.attention_probs_dropout_prob,
            act=config.hidden_act,
            eps=config.layer_norm_eps,
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        mask_ratio: float | None = None,
        bool_masked_pos: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MAEForPreTrainingOutput:
        """Hide patches, encode, decode and compare (section 3).

        Args:
            pixel_values: Images, `(B, C, H, W)`, normalised as the processor does it.
            noise: `(B, L)`; the patches with the largest values are hidden. Random if None.
            interpolate_pos_encoding: Accept images of another size, with positions resized for this call.
            mask_ratio: Share of patches to hide, in [0, 1); `config.mask_ratio` if None.
            bool_masked_pos: `(B, L)`, True is hidden, the same number in every row; wins over the other two.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            Loss, predicted pixels, mask and order. For images of another size, `unpatchify` the logits with that size.

        Raises:
            ValueError: If images, noise, ratio or mask do not fit.
        """
        mask_ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        encoded = self.mae(
            pixel_values, noise, interpolate_pos_encoding, mask_ratio, bool_masked_pos, return_dict=True, **kwargs
        )
        grid_size = grid_of((pixel_values.shape[2], pixel_values.shape[3]), self.config.patch_size)
        logits = self.decoder(encoded.last_hidden_state, encoded.ids_restore, grid_size)  # B L P*P*C
        loss = None
        if encoded.last_hidden_state.shape[1] < 1 + logits.shape[1]:  # something is hidden
            loss = reconstruction_loss(self.patchify(pixel_values), logits, encoded.mask, self.config.norm_pix_loss)
        return MAEForPreTrainingOutput(
            loss=loss,
            logits=logits,
            mask=encoded.mask,
            ids_restore=encoded.ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Cut images `(B, C, H, W)` into patches `(B, L, P * P * C)`; raises `ValueError` if they do not fit."""
        check_images(pixel_values, self.config.num_channels)
        return patchify(pixel_values, self.config.patch_size)

    def unpatchify(self, patchified_pixel_values: Tensor, original_image_size: tuple[int, int] | None = None) -> Tensor:
        """Put patches `(B, L, P * P * C)` together to images `(B, C, H, W)`, of the model's size by default."""
        values = self.config.patch_size**2 * self.config.num_channels
        if patchified_pixel_values.shape[-1] != values:
            shape = tuple(patchified_pixel_values.shape)
            raise ValueError(f"patchified_pixel_values must have the shape (B, L, {values}), got {shape}")
        size = self.mae.patch_embed.img_size if original_image_size is None else original_image_size
        return unpatchify(patchified_pixel_values, self.config.patch_size, size)

    def _lack(self, missing_keys: set[str]) -> str | None:
        if {f"decoder.{key}" for key in self.decoder.state_dict()} <= missing_keys:
            return f"are {NO_DECODER}: the decoder is newly initialised and untrained, train it before you use it"
        return None


class MAEForImageClassification(MAEPreTrainedModel):
    """The encoder with a classification head, for fine-tuning and linear probing (section 4.1, appendices A.1 and A.2).

    The head reads the mean of the patch tokens, normalised after pooling (`fc_norm`), or the normalised class token, by
    `config.pooling`. A linear probe (`config.linear_probe`) has a batch norm without weights before its linear layer,
    and only that layer is trainable. Otherwise everything is, the position table too.

    Source: `VisionTransformer` in models_vit.py and the head in main_linprobe.py of facebookresearch/mae.
    """

    # folders of encoders and pretraining models have them; pooling the mean has no use for the encoder's norm
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^(mae\.)?encoder\.norm\."]

    def __init__(self, config: MAEConfig) -> None:
        super().__init__(config)
        mean = config.pooling == "mean"
        self.mae = MAEModel(config, final_norm=not mean)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if mean else nn.Identity()
        self.head: nn.Module = nn.Identity()
        if config.num_labels:
            self.head = nn.Linear(config.hidden_size, config.num_labels)
        if config.linear_probe:
            self.head = nn.Sequential(nn.BatchNorm1d(config.hidden_size, eps=1e-6, affine=False), self.head)
        self.mae.pos_embed.requires_grad_(True)  # as officially, in contrast to pretraining
        self._freeze()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: Images, `(B, C, H, W)`, normalised as the processor does it.
            labels: Classes `(B,)`, or values `(B, num_labels)` for several labels or regression: the loss is the one of
                `config.problem_type`, which is told by their type if None.
            interpolate_pos_encoding: Accept images of another size, with positions resized for this call.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            Loss, if labels are given, and logits `(B, num_labels)`.

        Raises:
            ValueError: If the images do not fit.
        """
        encoded = self.mae(pixel_values, None, interpolate_pos_encoding, return_dict=True, **kwargs)
        logits = self.head(self.fc_norm(encoded.pooler_output))  # B D -> B num_labels
        loss = None
        if labels is not None:  # in float32 at least, as in pretraining
            scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
            labels = labels.to(scores.dtype) if labels.is_floating_point() else labels
            loss = self.loss_function(labels, scores, self.config, **kwargs)
        return ImageClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)

    def freeze_encoder(self) -> None:
        """Make the head alone trainable, for a linear probe; `requires_grad_(True)` undoes it."""
        self.requires_grad_(False)
        self.head.requires_grad_(True)

    def _freeze(self) -> None:
        if self.config.linear_probe:
            self.freeze_encoder()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Give the head small weights, as the official scripts do (main_finetune.py, main_linprobe.py)."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and module in list(self.head.modules()):
            initialization.trunc_normal_(module.weight, std=0.01 if self.config.linear_probe else 2e-5)


class MAEBackbone(BackboneMixin, MAEPreTrainedModel):
    """Feature maps of the encoder, for the segmentation and detection heads of transformers.

    Choose them with `config.out_features` ("stem", "stage1" ... "stageN") or `config.out_indices` (0 ... N); the last
    one by default. Heads give a backbone nothing but images, of any size: its positions are resized as needed.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(mae\.)?encoder\.norm\."]  # without `apply_layernorm` it has no use

    def __init__(self, config: MAEConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.mae = MAEModel(config, final_norm=config.apply_layernorm)
        self.mae.pos_embed.requires_grad_(True)  # as in a classifier
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = True, **kwargs: Unpack[TransformersKwargs]
    ) -> BackboneOutput:
        """Encode whole images.

        Args:
            pixel_values: Images, `(B, C, H, W)`, normalised as the processor does it, `H` and `W` divisible by `P`.
            interpolate_pos_encoding: Accept images of another size, with positions resized for this call.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            The chosen feature maps, each `(B, D, H / P, W / P)`.

        Raises:
            ValueError: If the images do not fit.
        """
        kwargs |= {"output_hidden_states": True, "return_dict": True}  # transformers 5.12 says the former by itself
        encoded = self.mae(pixel_values, None, interpolate_pos_encoding, **kwargs)
        h, w = grid_of((pixel_values.shape[2], pixel_values.shape[3]), self.config.patch_size)
        chosen = [encoded.hidden_states[index] for index in self.out_indices]
        patches = [self.mae.encoder.norm(tokens)[:, 1:] for tokens in chosen]  # B 1+L D -> B L D
        feature_maps = tuple(p.transpose(1, 2).unflatten(2, (h, w)).contiguous() for p in patches)  # B L D -> B D h w
        return BackboneOutput(feature_maps, encoded.hidden_states, encoded.attentions)

    def _freeze(self) -> None:
        """Leave everything trainable."""

    def _lack(self, missing_keys: set[str]) -> str | None:
        return self.mae._lack({key.removeprefix("mae.") for key in missing_keys})


def reconstruction_loss(patches: Tensor, pred: Tensor, mask: Tensor, norm_pix_loss: bool) -> Tensor:
    """Mean squared error over the hidden patches, in float32 at least (section 3, "Reconstruction target").

    Args:
        patches: Patches of the images, `(B, L, P * P * C)`.
        pred: Predicted patches, of the same shape.
        mask: `(B, L)`, 1 where the loss is taken.
        norm_pix_loss: Compare with patches normalised by their own mean and deviation.

    Returns:
        A scalar; NaN if nothing is hidden.

    Source: `MaskedAutoencoderViT.forward_loss` in facebookresearch/mae.
    """
    target = patches.to(torch.promote_types(pred.dtype, torch.float32))
    if norm_pix_loss:
        mean, deviation = patch_statistics(target)
        target = (target - mean) / deviation
    error = ((pred - target) ** 2).mean(dim=-1)  # B L
    return (error * mask).sum() / mask.sum()
