"""Masked autoencoders as transformers models (He et al. 2021, figure 1).

Shapes: `B` batch, `C` channels, `H W` pixels, `P` patch side, `L` patches, `L_keep` visible patches, `D` width.
"""

from dataclasses import dataclass

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
from .decoder import NO_DECODER, MAEDecoder
from .encoder import MAEEncoder
from .loss import reconstruction_loss
from .masking import MaskingOutput, masking_from_bool, random_masking
from .patch_embed import PatchEmbed, check_images, grid_of, patchify, unpatchify
from .pos_embed import get_2d_sincos_pos_embed, interpolate_pos_embed
from .pretrained import MAEPreTrainedModel

_UNTRAINED_DECODER = f"the decoder is randomly initialised, train it before use: the checkpoint has {NO_DECODER}"
_UNTRAINED_NORM = (
    "the final norm of the encoder is untrained: the checkpoint has no norm after the last block, like all classifiers "
    "with mean pooling"
)


@dataclass
class MAEModelOutput(ModelOutput):
    """Output of `MAEModel`.

    Attributes:
        last_hidden_state: `(B, 1 + L, D)`, the class token and all patches in image order; with masking,
            `(B, 1 + L_keep, D)`, the class token and the visible patches in ascending noise order.
        pooler_output: `(B, D)`, the mean of the patches or the class token, by `config.pooling`; None with masking.
        mask: `(B, L)`, 0 visible, 1 masked; None without masking.
        ids_restore: `(B, L)`, position of each patch in the shuffled order; None without masking.
        hidden_states: Input of the first block and output of each block, if requested.
        attentions: Attention weights of each block, `(B, heads, N, N)`, if requested ("eager" attention only).
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
        loss: Mean squared error over the masked patches; None if no patch is masked.
        logits: Predicted pixels of all patches in image order, `(B, L, P * P * C)`; per-patch normalised if the model
            was trained with `norm_pix_loss`.
        mask: `(B, L)`, 0 visible, 1 masked.
        ids_restore: `(B, L)`, position of each patch in the shuffled order.
        hidden_states: Input of the first encoder block and output of each encoder block, if requested.
        attentions: Attention weights of each encoder block, if requested ("eager" attention only).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MAEModel(MAEPreTrainedModel):
    """The encoder with patch embedding, class token and position embeddings: features of images or visible patches.

    It masks only if `mask_ratio`, `noise` or `bool_masked_pos` is passed, whatever `config.mask_ratio` is. Without
    masking, the features are in image order and, in eval mode, deterministic.

    Args:
        config: Configuration.
        final_norm: Normalise the tokens after the last block; classifiers with mean pooling normalise after pooling.
    """

    # checkpoints of the other models contain these, and the encoder does not use them
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^fc_norm\.", r"^head\."]

    def __init__(self, config: MAEConfig, final_norm: bool = True) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=config.num_channels,
            embed_dim=config.hidden_size,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        num_tokens = 1 + self.patch_embed.num_patches
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, config.hidden_size), requires_grad=False)
        self.encoder = MAEEncoder(
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_dim=config.intermediate_size,
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
            pixel_values: Images, `(B, C, H, W)`, normalised by the image processor.
            noise: `(B, L)`; the patches with the smallest values stay visible, as many as `mask_ratio` (if None,
                `config.mask_ratio`) leaves.
            interpolate_pos_encoding: Accept images of another size, with position embeddings interpolated for this
                call.
            mask_ratio: Fraction of patches to mask, in [0, 1).
            bool_masked_pos: `(B, L)`, True is masked, the same number in every row; takes precedence over `noise` and
                `mask_ratio`.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            Features of all patches in image order; of the visible patches, if one of the three masking arguments is
            given.

        Raises:
            ValueError: If the shape or a value of an argument does not fit.
        """
        grid_size = self._patch_grid(pixel_values, interpolate_pos_encoding)
        pos_embed = interpolate_pos_embed(self.pos_embed, self.patch_embed.grid_size, grid_size)  # 1 1+L D
        patches = self.patch_embed(pixel_values) + pos_embed[:, 1:]  # B L D
        masked = self._mask(patches, mask_ratio, noise, bool_masked_pos)
        visible = patches if masked is None else masked.x_masked  # B L_keep D
        cls_tokens = (self.cls_token + pos_embed[:, :1]).expand(visible.shape[0], -1, -1)  # B 1 D
        tokens = self.encoder(torch.cat([cls_tokens, visible], dim=1), **kwargs)  # B 1+L_keep D
        if masked is not None:
            return MAEModelOutput(tokens, mask=masked.mask, ids_restore=masked.ids_restore)
        return MAEModelOutput(tokens, tokens[:, 0] if self.config.pooling == "cls" else tokens[:, 1:].mean(dim=1))

    def _mask(
        self, patches: Tensor, mask_ratio: float | None, noise: Tensor | None, bool_masked_pos: Tensor | None
    ) -> MaskingOutput | None:
        if bool_masked_pos is not None:
            return masking_from_bool(patches, bool_masked_pos)
        if mask_ratio is None and noise is None:
            return None
        return random_masking(patches, self.config.mask_ratio if mask_ratio is None else mask_ratio, noise)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module; this model itself has the class token and the position embeddings."""
        super()._init_weights(module)
        if module is self:  # also inside another model: transformers calls this on each model for its own modules
            initialization.normal_(self.cls_token, std=self.config.initializer_range)
            pos_embed = get_2d_sincos_pos_embed(self.pos_embed.shape[-1], self.patch_embed.grid_size, cls_token=True)
            initialization.copy_(self.pos_embed, pos_embed)

    def _patch_grid(self, pixel_values: Tensor, any_size: bool) -> tuple[int, int]:
        """Return the patch grid `(h, w)` of images; raise `ValueError` if channels or size do not fit.

        Args:
            pixel_values: Images, `(B, C, H, W)`.
            any_size: Accept every size that is divisible by the patch size.
        """
        check_images(pixel_values, self.config.num_channels)
        size = (pixel_values.shape[2], pixel_values.shape[3])
        if any_size:
            return grid_of(size, self.config.patch_size)
        expected = self.patch_embed.img_size
        if size != expected:
            raise ValueError(
                f"the images have {size[0]}x{size[1]} pixels, the model expects {expected[0]}x{expected[1]}: resize "
                f"them, pass interpolate_pos_encoding=True, or call model.set_image_size({size}) once"
            )
        return self.patch_embed.grid_size

    @torch.no_grad()
    def _resize(self, image_size: int | tuple[int, int]) -> None:
        grid_size = self.patch_embed.grid_size
        self.patch_embed.set_image_size(image_size)
        pos_embed = interpolate_pos_embed(self.pos_embed, grid_size, self.patch_embed.grid_size)
        self.pos_embed = nn.Parameter(pos_embed, requires_grad=self.pos_embed.requires_grad)

    def _untrained_part(self, missing_keys: set[str]) -> str | None:
        return _UNTRAINED_NORM if {"encoder.norm.weight", "encoder.norm.bias"} <= missing_keys else None


class MAEForPreTraining(MAEPreTrainedModel):
    """The whole masked autoencoder: mask patches, encode the visible ones, predict the masked pixels (figure 1)."""

    _no_split_modules = ["Block", "MAEDecoder"]

    def __init__(self, config: MAEConfig) -> None:
        super().__init__(config)
        self.mae = MAEModel(config)
        self.decoder = MAEDecoder(
            encoder_embed_dim=config.hidden_size,
            decoder_embed_dim=config.decoder_hidden_size,
            num_patches=self.mae.patch_embed.num_patches,
            patch_size=config.patch_size,
            in_chans=config.num_channels,
            depth=config.decoder_num_hidden_layers,
            num_heads=config.decoder_num_attention_heads,
            mlp_dim=config.decoder_intermediate_size,
            grid_size=self.mae.patch_embed.grid_size,
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
        """Mask patches, encode the visible ones, decode, and compare (section 3).

        Args:
            pixel_values: Images, `(B, C, H, W)`, normalised by the image processor.
            noise: `(B, L)`; the patches with the smallest values stay visible. Random if None.
            interpolate_pos_encoding: Accept images of another size, with position embeddings interpolated for this
                call.
            mask_ratio: Fraction of patches to mask, in [0, 1); `config.mask_ratio` if None.
            bool_masked_pos: `(B, L)`, True is masked, the same number in every row; takes precedence over `noise` and
                `mask_ratio`.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            Loss, predicted pixels, mask and order. For images of another size, pass that size to `unpatchify`.

        Raises:
            ValueError: If the shape or a value of an argument does not fit.
        """
        encoded = self.mae(
            pixel_values,
            noise=noise,
            interpolate_pos_encoding=interpolate_pos_encoding,
            mask_ratio=self.config.mask_ratio if mask_ratio is None else mask_ratio,
            bool_masked_pos=bool_masked_pos,
            return_dict=True,
            **kwargs,
        )
        grid_size = self.mae._patch_grid(pixel_values, interpolate_pos_encoding)
        logits = self.decoder(encoded.last_hidden_state, encoded.ids_restore, grid_size)  # B L P*P*C
        loss = None
        if encoded.last_hidden_state.shape[1] < 1 + logits.shape[1]:  # some patches are masked
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
        """Split images `(B, C, H, W)` into patches `(B, L, P * P * C)`; raise `ValueError` if they do not fit."""
        check_images(pixel_values, self.config.num_channels)
        return patchify(pixel_values, self.config.patch_size)

    def unpatchify(self, patchified_pixel_values: Tensor, original_image_size: tuple[int, int] | None = None) -> Tensor:
        """Assemble images `(B, C, H, W)` from patches `(B, L, P * P * C)`, by default of the model's size.

        Raises:
            ValueError: If the patches do not fit the model or the size.
        """
        values = self.config.patch_size**2 * self.config.num_channels
        if patchified_pixel_values.shape[-1] != values:
            shape = tuple(patchified_pixel_values.shape)
            raise ValueError(f"patchified_pixel_values must have the shape (B, L, {values}), got {shape}")
        size = self.mae.patch_embed.img_size if original_image_size is None else original_image_size
        return unpatchify(patchified_pixel_values, self.config.patch_size, size)

    def _untrained_part(self, missing_keys: set[str]) -> str | None:
        decoder_keys = {f"decoder.{key}" for key in self.decoder.state_dict()}
        return _UNTRAINED_DECODER if decoder_keys <= missing_keys else None


class MAEForImageClassification(MAEPreTrainedModel):
    """The encoder with a classification head, for fine-tuning and linear probing (section 4.1, appendices A.1 and A.2).

    The input of the head is the mean of the patch tokens, normalised after pooling (`fc_norm`), or the normalised class
    token, as `config.pooling` specifies. With `config.linear_probe`, the head is a batch norm without weights and a
    linear layer, and only that layer is trainable. Otherwise everything is trainable, including the position
    embeddings.

    Source: `VisionTransformer` in models_vit.py and the head in main_linprobe.py of facebookresearch/mae.
    """

    # checkpoints of pretraining models contain a decoder; with mean pooling, the encoder's norm is not used
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
        self.mae.pos_embed.requires_grad_(True)  # as officially, unlike in pretraining
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
            pixel_values: Images, `(B, C, H, W)`, normalised by the image processor.
            labels: Classes `(B,)`, or values `(B, num_labels)` for multi-label classification or regression.
                `config.problem_type` determines the loss; if it is None, it is inferred from the labels.
            interpolate_pos_encoding: Accept images of another size, with position embeddings interpolated for this
                call.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            Loss, if labels are given, and logits `(B, num_labels)`.

        Raises:
            ValueError: If channels or size of the images do not fit.
        """
        encoded = self.mae(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs)
        logits = self.head(self.fc_norm(encoded.pooler_output))  # B D -> B num_labels
        loss = None
        if labels is not None:  # in float32 or wider, as in pretraining
            scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
            labels = labels.to(scores.dtype) if labels.is_floating_point() else labels
            loss = self.loss_function(labels, scores, self.config, **kwargs)
        return ImageClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)

    def freeze_encoder(self) -> None:
        """Freeze everything but the head, for a linear probe; `requires_grad_(True)` undoes it."""
        self.requires_grad_(False)
        self.head.requires_grad_(True)

    def _freeze(self) -> None:
        if self.config.linear_probe:
            self.freeze_encoder()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the head with small weights, like the official scripts (main_finetune.py, main_linprobe.py)."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and module in list(self.head.modules()):
            initialization.trunc_normal_(module.weight, std=0.01 if self.config.linear_probe else 2e-5)


class MAEBackbone(BackboneMixin, MAEPreTrainedModel):
    """Feature maps of the encoder, for the segmentation and detection heads of transformers.

    Choose them with `config.out_features` ("stem", "stage1", ..., "stageN") or `config.out_indices` (0 to N); the last
    one by default. Heads pass only images to a backbone, of any size: the position embeddings are interpolated as
    needed.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(mae\.)?encoder\.norm\."]  # not used without `apply_layernorm`

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
            pixel_values: Images, `(B, C, H, W)`, normalised by the image processor, `H` and `W` divisible by `P`.
            interpolate_pos_encoding: Accept images of another size, with position embeddings interpolated for this
                call.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            The chosen feature maps, each `(B, D, H / P, W / P)`.

        Raises:
            ValueError: If channels or size of the images do not fit.
        """
        kwargs["output_hidden_states"] = True  # transformers sets it from 5.12 on
        encoded = self.mae(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs)
        h, w = self.mae._patch_grid(pixel_values, interpolate_pos_encoding)
        chosen = [encoded.hidden_states[index] for index in self.out_indices]
        patches = [self.mae.encoder.norm(tokens)[:, 1:] for tokens in chosen]  # B 1+L D -> B L D
        feature_maps = tuple(p.transpose(1, 2).unflatten(2, (h, w)).contiguous() for p in patches)  # B L D -> B D h w
        return BackboneOutput(feature_maps, encoded.hidden_states, encoded.attentions)

    def _freeze(self) -> None:
        """Leave everything trainable, including the position embeddings."""

    def _untrained_part(self, missing_keys: set[str]) -> str | None:
        return self.mae._untrained_part({key.removeprefix("mae.") for key in missing_keys})
