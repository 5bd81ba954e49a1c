"""`python -m ml scenes`: images whose background may give the label away, drawn or composed of photographs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ml import commands


def add(parsers: commands.SubParsers[argparse.ArgumentParser]) -> None:
    """Add the command's parser; its options are the arguments of `ml.scenes.generate.write_archive`."""
    parser = parsers.add_parser("scenes", help="make a zip of images whose background may give the label away")
    parser.add_argument("archive", type=Path, help="the zip to write: images, labels, masks, boxes and clean labels")
    parser.add_argument("--train", type=int, default=2400, help="number of training images")
    parser.add_argument("--test", type=int, default=600, help="number of test images, which have clean labels")
    parser.add_argument("--seed", type=int, default=0, help="determines every pixel and label")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels, 16 or more")
    parser.add_argument(
        "--sizes", type=float, nargs=2, metavar=("FROM", "TO"), help="least and largest object, as shares of the side"
    )
    parser.add_argument("--noise", default="confounded", choices=("none", "ordinary", "confounded"))
    parser.add_argument("--rate", type=float, default=0.5, help="share of the labels redrawn as their scene's")
    parser.add_argument("--own-scene", type=float, default=0.0, help="probability of a class's own scene in training")
    parser.add_argument("--centred", action="store_true", help="objects in the middle of the image")
    parser.add_argument("--swapped", action="store_true", help="test images show the scene of another class")
    parser.add_argument("--objects", type=Path, help="folder of cut-outs, CLASS/image, instead of drawn objects")
    parser.add_argument("--scenes", type=Path, help="folder of photographs, SCENE/image, instead of drawn scenes")
    parser.add_argument("--held-out", type=float, default=0.25, help="share of photographs that only the test shows")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the zip, and print the share of wrong labels."""
    from ml.scenes import generate, photographs

    train_images, _ = generate.write_archive(
        options.archive,
        train=options.train,
        test=options.test,
        seed=options.seed,
        image_size=options.size,
        own_scene=options.own_scene,
        noise=options.noise,
        noise_rate=options.rate,
        centred=options.centred,
        swapped_test=options.swapped,
        sizes=tuple(options.sizes) if options.sizes else generate.ALIKE,
        foregrounds=photographs.PhotoForegrounds.read(options.objects) if options.objects else None,
        backgrounds=photographs.PhotoBackgrounds.read(options.scenes) if options.scenes else None,
        held_out=options.held_out,
    )
    wrong = float((train_images.given_labels != train_images.clean).mean()) if options.train else 0.0
    print(
        f"{options.archive}: {options.train} training and {options.test} test images, {wrong:.1%} of the labels wrong"
    )
    return 0
