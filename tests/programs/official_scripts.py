"""Pretrain, then fine-tune, as scripts for facebookresearch/mae do: `official_scripts.py FOLDER PRETRAIN FINETUNE`.

PRETRAIN and FINETUNE are official model names. Only the import of the models differs from such a script.
"""

import argparse
import sys
from pathlib import Path

import torch

from mae_hf.official import models_mae, models_vit

IMAGES = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([3, 7])


def save(model, optimizer, args, path):
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 0, "args": args}
    torch.save(content, path)


def pretrain(args, path):
    model = models_mae.__dict__[args.model](norm_pix_loss=args.norm_pix_loss)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3, betas=(0.9, 0.95))
    for _ in range(2):
        loss, pred, mask = model(IMAGES, mask_ratio=args.mask_ratio)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite() and pred.shape[:2] == mask.shape
    save(model, optimizer, args, path)


def layer_groups(model, weight_decay, layer_decay):
    """One group for each parameter, by the methods and attributes that the official script reads."""
    last = len(model.blocks) + 1
    for name, parameter in model.named_parameters():
        layer = 0 if name.startswith(("cls_token", "pos_embed", "patch_embed")) else last
        layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else layer
        decay = 0.0 if parameter.ndim == 1 or name in model.no_weight_decay() else weight_decay
        yield {"params": [parameter], "weight_decay": decay, "lr_scale": layer_decay ** (last - layer)}


def finetune(args, pretrained, path):
    model = models_vit.__dict__[args.model](
        num_classes=args.nb_classes, drop_path_rate=args.drop_path, global_pool=args.global_pool
    )
    with torch.serialization.safe_globals([argparse.Namespace]):
        weights = torch.load(pretrained, weights_only=True)["model"]
    assert (
        weights["pos_embed"].shape == model.pos_embed.shape == (1, model.patch_embed.num_patches + 1, model.embed_dim)
    )
    message = model.load_state_dict(weights, strict=False)
    assert set(message.missing_keys) == {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}
    torch.nn.init.trunc_normal_(model.head.weight, std=2e-5)
    optimizer = torch.optim.AdamW(layer_groups(model, 0.05, 0.75), lr=1e-3)
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(model(IMAGES), CLASSES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    save(model, optimizer, args, path)


if __name__ == "__main__":
    torch.manual_seed(0)
    folder = Path(sys.argv[1])
    first = argparse.Namespace(model=sys.argv[2], norm_pix_loss=True, mask_ratio=0.75)
    second = argparse.Namespace(model=sys.argv[3], nb_classes=10, drop_path=0.1, global_pool=True)
    pretrain(first, folder / "pretrained.pth")
    finetune(second, folder / "pretrained.pth", folder / "finetuned.pth")
