"""Images to patches and back (He et al. 2021, section 3).

Shapes: `B` batch, `C` channels, `H W` pixels, `P` patch side, `h w` patches down and across, `L = h * w`, `D` width.
"""

import math

from torch import Tensor, nn


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return a size as `(height, width)`; raise `ValueError` if it is neither an int nor a pair of ints."""
    pair = (size, size) if isinstance(size, int) else size
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(type(side) is int for side in pair)):
        raise ValueError(f"a size must be an int or a pair (height, width) of ints, got {size!r}")
    return pair[0], pair[1]


def grid_of(image_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return the number of patches down and across, `(h, w)`.

    Raises:
        ValueError: If a side is not a positive multiple of `patch_size`.
    """
    height, width = to_pair(image_size)
    if patch_size < 1:
        raise ValueError(f"patch_size must be a positive int, got {patch_size}")
    if min(height, width) < patch_size or height % patch_size or width % patch_size:
        raise ValueError(
            f"image size {height}x{width} is not divisible by the patch size {patch_size}: use multiples of it"
        )
    return height // patch_size, width // patch_size


def square_grid(num_patches: int) -> tuple[int, int]:
    """Return the patch grid of a square image with `num_patches` patches.

    Raises:
        ValueError: If `num_patches` is not a square number.
    """
    side = math.isqrt(max(num_patches, 0))
    if side < 1 or side * side != num_patches:
        raise ValueError(f"{num_patches} patches do not form a square image: specify the image size")
    return side, side


def check_images(images: Tensor, channels: int) -> None:
    """Raise `ValueError` unless `images` has the shape `(B, channels, H, W)`."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f"images must have the shape (B, {channels}, H, W), got {tuple(images.shape)}")


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Split images into flattened patches; the values of a patch are ordered by row, column and channel.

    Args:
        images: `(B, C, H, W)`.
        patch_size: Patch side in pixels.

    Returns:
        `(B, L, P * P * C)`, patches row by row.

    Raises:
        ValueError: If `images` is not four-dimensional or a side is not divisible by `patch_size`.

    Source: `MaskedAutoencoderViT.patchify` in facebookresearch/mae.
    """
    if images.ndim != 4:
        raise ValueError(f"images must have the shape (B, C, H, W), got {tuple(images.shape)}")
    batch, channels, height, width = images.shape
    h, w = grid_of((height, width), patch_size)
    patches = images.reshape(batch, channels, h, patch_size, w, patch_size)  # B C H W -> B C h P w P
    patches = patches.permute(0, 2, 4, 3, 5, 1)  # B C h P w P -> B h w P P C
    return patches.reshape(batch, h * w, patch_size**2 * channels)  # B L P*P*C


def unpatchify(patches: Tensor, patch_size: int, image_size: int | tuple[int, int] | None = None) -> Tensor:
    """Assemble images from flattened patches: the inverse of `patchify`.

    Args:
        patches: `(B, L, P * P * C)`.
        patch_size: Patch side in pixels.
        image_size: Side or `(H, W)` of the images in pixels; None for square images.

    Returns:
        `(B, C, H, W)`.

    Raises:
        ValueError: If `patches` is not three-dimensional, its last dimension is not a multiple of `patch_size ** 2`,
            or `L` does not match `image_size`.

    Source: `MaskedAutoencoderViT.unpatchify` in facebookresearch/mae.
    """
    if patches.ndim != 3 or patches.shape[2] == 0 or patches.shape[2] % patch_size**2:
        raise ValueError(
            f"patches must have the shape (B, L, P * P * C) with P = {patch_size}, got {tuple(patches.shape)}"
        )
    batch, length, values = patches.shape
    h, w = square_grid(length) if image_size is None else grid_of(image_size, patch_size)
    if h * w != length:
        raise ValueError(f"an image of {h}x{w} patches needs {h * w} patches, got {length}")
    channels = values // patch_size**2
    images = patches.reshape(batch, h, w, patch_size, patch_size, channels)  # B L P*P*C -> B h w P P C
    images = images.permute(0, 5, 1, 3, 2, 4)  # B h w P P C -> B C h P w P
    return images.reshape(batch, channels, h * patch_size, w * patch_size)  # B C H W


class PatchEmbed(nn.Module):
    """Linear projection of each patch (section 3, "MAE encoder"), as a convolution whose stride equals its kernel size.

    Args:
        img_size: Side or `(H, W)` of the images, in pixels.
        patch_size: Patch side `P`, in pixels.
        in_chans: Channels `C`.
        embed_dim: Width `D`.

    Raises:
        ValueError: If `img_size` is not divisible by `patch_size`.
    """

    def __init__(
        self, img_size: int | tuple[int, int] = 224, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.patch_size = (patch_size, patch_size)  # a pair, as in the official code
        self.set_image_size(img_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def set_image_size(self, img_size: int | tuple[int, int]) -> None:
        """Change the expected image size, a side or `(H, W)`."""
        self.grid_size = grid_of(img_size, self.patch_size[0])
        self.img_size = to_pair(img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, images: Tensor) -> Tensor:
        """Embed images of any size that is divisible by the patch size.

        Args:
            images: `(B, C, H, W)`.

        Returns:
            Patch tokens without position embeddings, `(B, L, D)`.

        Raises:
            ValueError: If the number of channels or the size of `images` does not fit.
        """
        check_images(images, self.in_chans)
        grid_of((images.shape[2], images.shape[3]), self.patch_size[0])  # a convolution would drop the remainder
        tokens = self.proj(images.to(self.proj.weight.dtype))  # B C H W -> B D h w
        return tokens.flatten(2).transpose(1, 2)  # B D h w -> B L D
