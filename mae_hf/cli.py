"""The command `mae-hf`."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from transformers import BitImageProcessorPil
from transformers.utils import logging

from .checkpoint import first_line
from .configuration_mae import MAEConfig
from .image_processor import image_processor
from .masking import DEFAULT_MASK_RATIO, MASKS
from .modeling_mae import MAEForPreTraining
from .pretrained import UntrainedWeightsWarning
from .reconstruction import NORMALISED_NOTE, draw_panels, reconstruct


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `mae-hf`.

    Returns:
        Exit status: 0 on success; 1 on an error, an interruption or a failed `verify`, with one line on standard error.
        Wrong usage exits with 2.
    """
    from mae_hf.conversion.commands import add_commands  # here, as `python -m conversion` uses `run` uninstalled

    parser = argparse.ArgumentParser(prog="mae-hf", description="Masked Autoencoders for the Hugging Face ecosystem.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_reconstruct(commands)
    add_commands(commands)
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Run the chosen command; an error becomes one line on standard error and exit status 1."""
    huggingface_hub.logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            status: int = options.command(options)
    except (ValueError, OSError) as error:
        print(f"mae-hf: {first_line(error)}", file=sys.stderr)
        return 1
    except Exception as error:  # a bug: still one line, and nothing half-written
        name = type(error).__name__
        print(f"mae-hf: unexpected {name}, please report it with the command: {first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mae-hf: interrupted", file=sys.stderr)
        return 1
    return status


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"mae-hf: warning: {message}", file=sys.stderr)


def _add_reconstruct(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("reconstruct", help="mask patches of images and let a model fill them in")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="model with a decoder")
    parser.add_argument("--output", required=True, metavar="out.png", help="one labelled figure of all images")
    parser.add_argument(
        "--mask-ratio",
        type=float,
        default=DEFAULT_MASK_RATIO,
        help="fraction of patches to mask (default: %(default)s)",
    )
    parser.add_argument("--mask", choices=MASKS, default="random", help="masking strategy (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the masks (default: %(default)s)")
    parser.set_defaults(command=_reconstruct)


def _reconstruct(options: argparse.Namespace) -> int:
    model = load_with_decoder(options.model)
    processor = _processor(options.model, model.config)
    rows = [
        reconstruct(
            model, image, mask_ratio=options.mask_ratio, mask=options.mask, seed=options.seed + n, processor=processor
        )
        for n, image in enumerate(options.images)
    ]
    labels = ("original", f"masked {options.mask_ratio:.0%} ({options.mask})", "reconstruction", "with visible patches")
    note = NORMALISED_NOTE if model.config.norm_pix_loss else ""
    draw_panels(rows, labels, note).save(options.output)
    print(options.output)
    return 0


def load_with_decoder(name: str) -> MAEForPreTraining:
    """Load a pretraining model from a folder or the Hub.

    Raises:
        ValueError: If there is no such model, or it has no decoder; the message lists the released files that have one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UntrainedWeightsWarning)
            model, info = MAEForPreTraining.from_pretrained(name, output_loading_info=True)
    except UntrainedWeightsWarning as warning:
        raise ValueError(f"{name} cannot reconstruct: {warning}") from warning
    except ValueError:
        raise
    except Exception as error:  # damaged folders can raise nearly anything
        raise ValueError(f"the model {name!r} cannot be loaded: {error}") from error
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing or unexpected:
        raise ValueError(
            f"{name} does not fit its config: {len(missing)} missing keys, {len(unexpected)} unexpected keys, "
            f"such as {(missing + unexpected)[0]}"
        )
    return model


def _processor(name: str, config: MAEConfig) -> BitImageProcessorPil:
    """Return the processor saved with the model or, if there is none, the official transform for its size."""
    try:
        return BitImageProcessorPil.from_pretrained(name)
    except OSError:
        if (Path(name) / "preprocessor_config.json").exists():  # damaged
            raise
        return image_processor(config)


if __name__ == "__main__":
    sys.exit(main())
