"""The tiny model of the golden values as arguments of the official constructors."""

TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
TINY_MAE = {**TINY_VIT, "decoder_embed_dim": 32, "decoder_depth": 2, "decoder_num_heads": 4}
