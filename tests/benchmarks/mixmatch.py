"""T4: an epoch of DivideMix's MixMatch phase against the same epoch as the released scripts run it, one thread.

An epoch: both networks score the whole set, two mixtures, then each network trains on the other's division with two
views of 64 labelled and 64 unlabelled images a step. The peer is the released style, written anew: one PIL image at a
time through torchvision's transforms and a DataLoader of its own for each pass, one forward pass for each view, f32,
images in NCHW. It holds the same networks and trains on the same divisions (its own are computed and dropped, so that
both take as many steps); its mixture is ours, which is not what is compared.

Conditions: CPU, torch with one thread, 32 px, crop and flip, 40 % symmetric noise, epochs interleaved, CPU time of this
process. Ours computes as a user's training does: in bf16 where the CPU has it, else in f32, and then the target is out
of reach unless the network costs next to nothing: most of both is the same convolutions.
"""

from __future__ import annotations

import copy
import json
import statistics
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped]

from ml.blocks import gaussian_mixture
from ml.data.dataset import LabeledImages, Truth
from ml.data.stored_rows import in_memory
from ml.methods import dividemix
from ml.training import devices
from ml.training.spec import NoiseSpec, TrainingSpec
from ml.training.trainer import Trainer
from tests.benchmarks._sizes import arguments, size
from tests.benchmarks._timing import cpu_seconds, train_epoch

SIDE, BATCH, CLASSES, TARGET = 32, 128, 10, 2.2
THRESHOLD = dividemix.Params().clean_threshold
Views = tuple[Tensor, Tensor]


def pictures(count: int) -> LabeledImages:
    """Ten classes of tinted noise: learned in an epoch or two, so that the division has something to divide."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    tints = torch.randint(0, 120, (CLASSES, 1, 1, 3), generator=generator)
    images = torch.randint(0, 136, (count, SIDE, SIDE, 3), generator=generator) + tints[labels]
    return LabeledImages(images.to(torch.uint8), labels, tuple("abcdefghij"))


# --- ours ---


def ours(images: LabeledImages, network: str, epochs: int) -> Trainer:
    """Trained through the warm-up."""
    spec = TrainingSpec(
        method="dividemix",
        network=network,
        epochs=epochs + 1,
        batch_size=BATCH,
        validation_fraction=0.0,
        noise=NoiseSpec(kind="symmetric", rate=0.4),
    )
    return Trainer.build(spec, images, truth=Truth(None, None, None), device="cpu", threads=1)


# --- the peer ---


class SingleImages(Dataset[Any]):
    """Some images, their labels and how far they are trusted, in `views` random views or plain."""

    def __init__(
        self, images: np.ndarray, labels: Tensor, clean_probability: Tensor, views: int, mean: Tensor, std: Tensor
    ) -> None:
        self._images, self._labels, self._trust, self._views = images, labels, clean_probability, views
        augment = [transforms.RandomCrop(SIDE, padding=4), transforms.RandomHorizontalFlip()] if views else []
        norm = transforms.Normalize(mean.tolist(), std.tolist())
        self._transform = transforms.Compose([*augment, transforms.ToTensor(), norm])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        image = Image.fromarray(self._images[row])
        views = [self._transform(image) for _ in range(max(1, self._views))]
        return (*views, self._labels[row], self._trust[row])


class Peer:
    """The released style: a loader for each pass, everything by the image."""

    def __init__(self, training: Trainer, images: LabeledImages) -> None:
        self._training = training
        assert isinstance(training.method, dividemix.Method)
        self._ours = training.method
        self._images = in_memory(images.images).numpy()
        self._labels = training.labels
        self._nets = [copy.deepcopy(net).to(memory_format=torch.contiguous_format) for net in self._ours.networks]
        self._optimizers = [
            torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4) for net in self._nets
        ]

    def data(self) -> None:
        """What the loaders of an epoch cost alone."""
        every = torch.ones(len(self._labels))
        for net_index in (0, 1):
            clean_probability = self.division()[1 - net_index]
            trusted = self._loader(clean_probability > THRESHOLD, clean_probability, 2, BATCH // 2, shuffle=True)
            others = iter(self._loader(clean_probability <= THRESHOLD, clean_probability, 2, BATCH // 2, shuffle=True))
            for _ in trusted:
                next(others, None)
            for _ in self._loader(every.bool(), every, 0, BATCH, shuffle=False):
                pass

    def epoch(self) -> None:
        for net in self._nets:
            self._score(net)
        for net_index in (0, 1):
            clean_probability = self.division()[1 - net_index]
            self._train(net_index, clean_probability, clean_probability > THRESHOLD)

    def division(self) -> Tensor:
        """The same as ours: probabilities of being clean by both networks (2, N)."""
        return self._ours.clean_probability

    def _loader(
        self, mask: Tensor, clean_probability: Tensor, views: int, size: int, *, shuffle: bool
    ) -> DataLoader[Any]:
        rows = mask.nonzero()[:, 0]
        chosen = SingleImages(
            self._images[rows.numpy()],
            self._labels[rows],
            clean_probability[rows],
            views,
            self._training.mean,
            self._training.std,
        )
        return DataLoader(chosen, size, shuffle=shuffle)

    def _score(self, net: nn.Module) -> Tensor:
        every = torch.ones(len(self._labels))
        net.eval()
        losses = []
        with torch.no_grad():
            for pictures, labels, _ in self._loader(every.bool(), every, 0, BATCH, shuffle=False):
                losses.append(functional.cross_entropy(net(pictures), labels, reduction="none"))
        scores = torch.cat(losses)
        return gaussian_mixture.clean_probability((scores - scores.min()) / (scores.max() - scores.min()))

    def _train(self, net_index: int, clean_probability: Tensor, trusted: Tensor) -> None:
        net, other, optimizer = self._nets[net_index], self._nets[1 - net_index], self._optimizers[net_index]
        net.train()
        other.eval()
        unlabelled = self._loader(~trusted, clean_probability, 2, BATCH // 2, shuffle=True)
        besides = iter(unlabelled)
        for x1, x2, labels, trust_x in self._loader(trusted, clean_probability, 2, BATCH // 2, shuffle=True):
            try:
                u1, u2, _, _ = next(besides)
            except StopIteration:
                besides = iter(unlabelled)
                u1, u2, _, _ = next(besides)
            loss = self._loss(net, other, (x1, x2), (u1, u2), labels, trust_x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _loss(
        self, net: nn.Module, other: nn.Module, x: Views, u: Views, labels: Tensor, clean_probability: Tensor
    ) -> Tensor:
        with torch.no_grad():
            guess = torch.stack([torch.softmax(n(view), dim=1) for n in (net, other) for view in u]).mean(dim=0)
            own = torch.stack([torch.softmax(net(view), dim=1) for view in x]).mean(dim=0)
            refined = (
                clean_probability[:, None] * functional.one_hot(labels, CLASSES)
                + (1 - clean_probability[:, None]) * own
            )
            targets = [mean_guess**2 / (mean_guess**2).sum(dim=1, keepdim=True) for mean_guess in (refined, guess)]
        share = float(np.random.beta(4, 4))
        share = max(share, 1 - share)
        images = torch.cat([*x, *u])
        mixed_targets = torch.cat([targets[0], targets[0], targets[1], targets[1]])
        partner = torch.randperm(len(images))
        logits = net(share * images + (1 - share) * images[partner])
        mixed_targets = share * mixed_targets + (1 - share) * mixed_targets[partner]
        first = 2 * len(labels)
        supervised = -(functional.log_softmax(logits[:first], dim=1) * mixed_targets[:first]).sum(dim=1).mean()
        distance = ((torch.softmax(logits[first:], dim=1) - mixed_targets[first:]) ** 2).mean()
        mean = torch.softmax(logits, dim=1).mean(dim=0)
        return supervised + 25 * distance + (torch.log(1 / CLASSES / mean) / CLASSES).sum()


def epochs(network: str, count: int, repeats: int) -> dict[str, object]:
    images = pictures(count)
    training = ours(images, network, repeats + 1)
    events = iter(training)
    train_epoch(events)
    peer = Peer(training, images)
    train_epoch(events)  # warm
    pairs = [(cpu_seconds(lambda: train_epoch(events)), cpu_seconds(peer.epoch)) for _ in range(repeats)]
    ratio = statistics.median(theirs / own for own, theirs in pairs)
    half = devices.uses_bf16("auto", torch.device("cpu"))
    trusted = peer.division() > THRESHOLD
    result: dict[str, object] = {
        "id": "T4",
        "benchmark": f"MixMatch epoch of {network} over single PIL images in f32",
        "measured": round(ratio, 2),
        "target": f">= {TARGET}",
        "met": ratio >= TARGET,
        "precision": "bf16" if half else "f32",
        "ours_cpu_s": round(statistics.median(own for own, _ in pairs), 2),
        "peer_cpu_s": round(statistics.median(theirs for _, theirs in pairs), 2),
        "peer_data_cpu_s": round(statistics.median(cpu_seconds(peer.data) for _ in range(3)), 2),
        "images": count,
        "labelled": trusted.sum(dim=1).tolist(),
    }
    if ratio < TARGET and not half:
        result["why"] = "this CPU has no bf16, and in f32 most of both is the same convolutions"
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(epochs("small", int(arguments()[0]) if arguments() else size(512, 128), size(3, 1))), flush=True)
