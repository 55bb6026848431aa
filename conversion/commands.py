"""The command lines of the conversion: arguments and output."""

import argparse
import re
import sys

from mae_hf.hub import push

from .convert import convert, verify
from .inference import PRETRAINING
from .layouts import LAYOUTS, NATIVE
from .source import Converted, inspect

_SOURCE = "file (.pth, .bin, .safetensors), folder, name of a released file such as mae_visualize_vit_base, or Hub id"
_GIVEN = ("num_attention_heads", "decoder_num_attention_heads", "image_size")


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `convert`, `inspect` and `verify`."""
    source, given = argparse.ArgumentParser(add_help=False), argparse.ArgumentParser(add_help=False)
    source.add_argument("source", metavar="SRC", help=_SOURCE)
    heads = "heads of the {}, which the weights do not specify; required unless a released model has its width"
    given.add_argument("--num-attention-heads", type=int, metavar="N", help=heads.format("encoder"))
    given.add_argument("--decoder-num-attention-heads", type=int, metavar="N", help=heads.format("decoder"))
    given.add_argument("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="size of non-square images")

    parser = subparsers.add_parser("convert", parents=[source, given], help="convert weights to another layout")
    parser.set_defaults(command=_convert, usage_error=parser.error)
    parser.add_argument("destination", metavar="DST", help="folder or file to write; appears whole or not at all")
    parser.add_argument("--to", choices=LAYOUTS, default=NATIVE.name, help="layout of DST (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier conversion wrote")
    parser.add_argument(
        "--norm-pix-loss",
        action=argparse.BooleanOptionalAction,
        help="the model predicts normalised pixels; for files that do not specify it",
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="cast the weights")
    parser.add_argument(
        "--max-shard-size", default="5GB", type=_file_size, help="largest safetensors file (default: %(default)s)"
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="of the weights, for the card; a released file keeps cc-by-nc-4.0 (default: that of SRC's card, or other)",
    )
    parser.add_argument(
        "--with-code",
        action="store_true",
        help="put the code of the models into DST: transformers loads it with trust_remote_code=True anywhere",
    )
    parser.add_argument("--push-to-hub", metavar="REPO_ID", help="also upload DST to the Hub")
    parser.add_argument("--private", action="store_true", help="make the repository private")

    parser = subparsers.add_parser("inspect", parents=[source, given], help="summarise weights")
    parser.set_defaults(command=_inspect)

    parser = subparsers.add_parser("verify", parents=[source], help="compare weights with a conversion, bit for bit")
    parser.add_argument("destination", metavar="DST", help="conversion of SRC: file, folder or Hub id")
    parser.set_defaults(command=_verify)


def _file_size(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", text):
        raise argparse.ArgumentTypeError(f"expected a number with KB, MB, GB or TB, such as 5GB, got {text!r}")
    return text


def _convert(options: argparse.Namespace) -> int:
    layout = LAYOUTS[options.to]
    if options.private and not options.push_to_hub:
        options.usage_error("--private is for a repository: pass --push-to-hub REPO_ID as well")
    if options.push_to_hub and layout.is_file:
        options.usage_error(f"--push-to-hub uploads a folder, and --to {options.to} writes a file")
    if options.with_code and not layout.has_code:
        options.usage_error(f"--with-code is for folders of this package, not for --to {options.to}")
    names = ("to", "overwrite", "norm_pix_loss", "dtype", "max_shard_size", "license", "with_code", *_GIVEN)
    done = convert(options.source, options.destination, **{name: getattr(options, name) for name in names})
    _report(done, options.destination)
    if options.push_to_hub:
        print(push(options.destination, options.push_to_hub, private=options.private))
    return 0


def _report(done: Converted, destination: str) -> None:
    cast = f", cast to {str(done.dtype).removeprefix('torch.')}" if done.dtype else ""
    print(f"{destination}: {done.num_tensors} tensors{cast}, read back and compared bit for bit")
    if done.source.others:
        print(f"left out, as they are not weights: {', '.join(done.source.others)}")
    if not done.source.checksummed:
        print("safetensors and the legacy serialisation have no checksums: damage in the source cannot be detected")
    if done.kind == PRETRAINING and not done.layout.is_file:
        print(f"norm_pix_loss is {done.config.norm_pix_loss}, from {done.norm_pix_loss_from or 'the default'}")
        if done.norm_pix_loss_from is None:
            print("pass --norm-pix-loss (and --overwrite) if the model was trained to predict normalised pixels")
    print("load it:", "; ".join(done.layout.loading_code(done.kind, destination)))
    if hasattr(done.config, "auto_map"):
        name = done.layout.auto_class(done.kind)
        print(f'or, without mae_hf, with {name}.from_pretrained("{destination}", trust_remote_code=True)')


def _inspect(options: argparse.Namespace) -> int:
    for name, value in inspect(options.source, **{name: getattr(options, name) for name in _GIVEN}).items():
        print(f"{name:22s} {value}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    lines = verify(options.source, options.destination)
    if lines:
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        print(f"mae-hf: {options.destination} differs: {lines[0]}{more}", file=sys.stderr)
        return 1
    print(f"{options.source} and {options.destination}: all tensors equal bit for bit; nothing missing, nothing extra")
    return 0
