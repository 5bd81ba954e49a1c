"""Any classification network of timm, by timm's name after `timm_`, cut into the three parts of a `Chain`.

The catalog lists none of them, since it must not depend on what is installed: they are known by their weights. A
network that runs its modules one after the other is divided there; of any other only the classifier can be trained, or
all of it. timm is imported when one of its networks is used.

Shapes: `B` batch, `C` classes, `D` features.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ml import errors
from ml.networks import chain

PREFIX = "timm_"
SEQUENCES = ("blocks", "stages", "layers", "features")  # what timm calls a sequence of stages: its members are units


class Tokens(nn.Module):
    """A vision transformer before its first block: patches, class token, positions."""

    def __init__(self, vit: Any) -> None:  # timm's VisionTransformer
        super().__init__()
        self.patch_embed, self.patch_drop, self.norm_pre = vit.patch_embed, vit.patch_drop, vit.norm_pre
        self.cls_token, self.reg_token, self.pos_embed = vit.cls_token, vit.reg_token, vit.pos_embed
        self.pos_drop = vit.pos_drop
        self._positions_of_prefix = not vit.no_embed_class

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, tokens, D)."""
        tokens: Tensor = self.patch_embed(images)
        prefix = [t.expand(len(images), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if self._positions_of_prefix:
            tokens = torch.cat([*prefix, tokens], dim=1) + self.pos_embed
        else:
            tokens = torch.cat([*prefix, tokens + self.pos_embed], dim=1)
        embedded: Tensor = self.norm_pre(self.patch_drop(self.pos_drop(tokens)))
        return embedded


class TokenPool(nn.Module):
    """The end of a vision transformer: (B, tokens, D) -> (B, D)."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.norm = vit.fc_norm
        self._pool_type, self._prefix_tokens = vit.global_pool, vit.num_prefix_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        pool = importlib.import_module("timm.layers").global_pool_nlc
        features: Tensor = self.norm(pool(tokens, pool_type=self._pool_type, num_prefix_tokens=self._prefix_tokens))
        return features


class Whole(nn.Module):
    """A network that cannot be divided: (B, 3, H, W) -> (B, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(images)
        return features


def summaries() -> dict[str, str]:
    """None: the networks of this family are known by their weights."""
    return {}


def build(name: str, classes: int, image_size: int, pretrained: Path | None, published_stem: bool) -> chain.Chain:
    """See `ml.networks.build`; the stem is always the published one."""
    timm = import_timm(name)
    architecture = name.removeprefix(PREFIX).partition(".")[0]
    if not timm.is_model(architecture):
        raise errors.UnknownName(f"timm has no network {architecture}", code="unknown_network")
    config = timm.models.get_pretrained_cfg(architecture)
    options: dict[str, Any] = {"num_classes": classes}
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    model = timm.create_model(architecture, **options)
    if pretrained is not None:
        weights = chain.read_weights(pretrained)
        _take_classifier(weights, model, config)
        # timm resamples the positions of transformers, and is strict where the number of classes agrees.
        source = {"state_dict": weights, "num_classes": classes, "source": "", "custom_load": False}
        try:
            model = timm.create_model(architecture, **options, pretrained=True, pretrained_cfg_overlay=source)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise errors.MissingWeights(
                f"{name} cannot take these weights: {reason}", code="unfitting_weights"
            ) from error
    return _divide(name, model, image_size)


def import_timm(name: str) -> Any:
    """timm; MissingWeights where it is not installed."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise errors.MissingWeights(
            f"{name} is a network of timm, which is not installed",
            hint="`pip install 'denll[timm]'` installs it",
            code="timm_missing",
        ) from error


def _take_classifier(weights: dict[str, Tensor], model: nn.Module, config: Any) -> None:
    """Replace the classifier among the weights by the model's where it has other classes, or add it."""
    names = getattr(config, "classifier", None) or ()
    for name in (names,) if isinstance(names, str) else names:
        for own, tensor in model.state_dict().items():
            if own.startswith(f"{name}.") and (own not in weights or weights[own].shape != tensor.shape):
                weights[own] = tensor


@torch.no_grad()
def _divide(name: str, model: Any, image_size: int) -> chain.Chain:
    """The network as a chain that computes the same."""
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise errors.UnknownName(f"{name} has no linear classifier", code="unknown_network")
    published = chain.names_of(model)
    model.reset_classifier(0)  # from here on the model returns what its classifier read
    was_training = model.training
    model.eval()
    image = torch.linspace(-2.0, 2.0, 3 * image_size**2).sin().view(1, 3, image_size, image_size)
    features: Tensor = model(image)
    has_channels_first = getattr(model, "output_fmt", "NCHW") == "NCHW"  # as maps of a chain have
    units = _transformer_units(model) or (_units_in_order(model, image) if has_channels_first else [])
    network = chain.Chain(Whole(model), nn.Identity(), classifier, image_size)
    if len(units) > 1:
        last = _last_stage(units)
        divided = chain.Chain(nn.Sequential(*units[:last]), nn.Sequential(*units[last:]), classifier, image_size)
        computed = divided.eval().features(image)
        if computed.shape == features.shape and torch.allclose(computed, features, rtol=1e-4, atol=1e-5):
            network = divided
    return chain.set_published_names(network, published).train(was_training)


def _transformer_units(model: Any) -> list[nn.Module]:
    """The modules of a vision transformer; empty for other networks, and for those with parts that are rare."""
    transformer = importlib.import_module("timm.models.vision_transformer").VisionTransformer
    if not isinstance(model, transformer) or model.attn_pool is not None or model.pos_embed is None:
        return []
    if model.dynamic_img_size:  # its positions follow the images' size
        return []
    return [Tokens(model), *model.blocks, model.norm, TokenPool(model)]


def _units_in_order(model: nn.Module, image: Tensor) -> list[nn.Module]:
    """The modules of a network that feeds each one's output to the next; empty where it does anything in between."""
    units: list[nn.Module] = []
    for name, child in model.named_children():
        units += list(child.children()) if name in SEQUENCES and isinstance(child, nn.Sequential) else [child]
    order: list[nn.Module] = []
    latest: list[Any] = [image]
    is_chain = [True]

    def record(unit: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        is_chain[0] = is_chain[0] and len(inputs) == 1 and inputs[0] is latest[0] and unit not in order
        order.append(unit)
        latest[0] = output

    hooks = [unit.register_forward_hook(record) for unit in units]
    try:
        features = model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return order if is_chain[0] and features is latest[0] else []


def _last_stage(units: list[nn.Module]) -> int:
    """The position of the last unit that holds several matrices or kernels: what follows is a head or a pool."""
    matrices = [sum(parameter.dim() > 1 for parameter in unit.parameters()) for unit in units]
    return max((i for i, count in enumerate(matrices) if i and count > 1), default=len(units) - 1)
