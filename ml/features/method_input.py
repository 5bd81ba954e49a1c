"""What a method sees of a picture when a pretrained backbone stands before it, in training and in every prediction.

The backbone's frozen part turns a picture into features or feature maps. With "composite" among the renderings, the
method sees those of two pictures side by side: of the picture itself, f + b, and of its object before the mean
background, f + b̄ (DeNLL, Eq. 4). Objects are located by what stands out in the backbone's maps (Eq. 5). A method whose
networks are trained whole sees the two pictures themselves, and the backbone only locates.

Shapes: `B` batch, `S` side, `C` classes, pictures (B, 3, S, S) normalised; gaussians (B, 3): centre x, centre y, sigma
in pixels; features (B, D) or maps (B, D, h, w).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from ml.features import composites
from ml.features.encoder import Encoded, Encoder
from ml.features.localizer import BorderLocalizer
from ml.method import ENSEMBLE, Method

# centred: a composite whose mask stands in the middle of every picture, the control of localization (Table 4, w/o LM)
Rendering = Literal["picture", "composite", "centred", "background"]

CENTRAL_SIGMA = 0.2  # of the central mask, as a share of the side


class Rendered(NamedTuple):
    """Pictures as the method sees them."""

    inputs: Tensor  # (B, D), (B, D, h, w) or pixels (B, 3, S, S); twice as wide with composites
    gaussians: Tensor | None  # (B, 3); None where the backbone has no feature maps
    encoded: Encoded  # of the pictures themselves; its output is what a network sees of them


class MethodInput(nn.Module):
    """Pictures in, the method's input out; nothing in it is trained.

    Attributes:
        encoder: The backbone's frozen part.
        renderings: What the method sees, side by side.
        shows_pixels: Whether it sees pixels, and not what the encoder computes of them.
    """

    mean_background: Tensor  # b̄, f32 (1, 3, S, S); zeros until it is known

    def __init__(self, encoder: Encoder, renderings: tuple[Rendering, ...], *, shows_pixels: bool = False) -> None:
        """Bind the parts; `mean_background` is set when the training images have been located."""
        super().__init__()
        side = encoder.image_size
        self.encoder = encoder
        self.localizer = BorderLocalizer(side)
        self.renderings = renderings
        self.shows_pixels = shows_pixels
        self.register_buffer("mean_background", torch.zeros(1, 3, side, side))
        self._prepared = [encoder]  # what computes; in a list, since it is no part of the state

    def prepare(self, pictures: Tensor, *, half: bool) -> MethodInput:
        """Compute by a faster encoder from now on, in bf16 if `half` and if that agrees; see `Encoder.prepare`."""
        self._prepared = [self.encoder.prepare(pictures, half=half)]
        return self

    @property
    def prepared(self) -> Encoder:
        """The encoder that computes."""
        return self._prepared[0]

    @property
    def uses_bf16(self) -> bool:
        """Whether the encoder computes in bf16."""
        return self.prepared.uses_bf16

    def forward(self, pictures: Tensor) -> Rendered:
        """All renderings of pictures (B, 3, S, S)."""
        encoded = self.encode(pictures)
        gaussians = self.locate(encoded)
        parts = [encoded.output]
        for rendering in self.renderings[1:]:
            assert gaussians is not None, "composites need a backbone with feature maps"
            rendered = self.render(pictures, gaussians, rendering)
            parts.append(rendered if self.shows_pixels else self.encode(rendered).output)
        return Rendered(torch.cat(parts, dim=1), gaussians, encoded)

    def encode(self, pictures: Tensor) -> Encoded:
        """What a network sees of pictures (B, 3, S, S), and the backbone's feature maps."""
        encoded = cast(Encoded, self.prepared(pictures))
        return encoded._replace(output=pictures) if self.shows_pixels else encoded

    def locate(self, encoded: Encoded) -> Tensor | None:
        """Where composites take the objects of encoded pictures to be, (B, 3); None without feature maps."""
        return None if encoded.maps is None else self.objects(self.localizer(encoded.maps))

    def objects(self, gaussians: Tensor) -> Tensor:
        """Where composites take the objects to be, (B, 3): where they were located, or in the middle ("centred")."""
        if "centred" not in self.renderings:
            return gaussians
        side = self.encoder.image_size
        return gaussians.new_tensor([(side - 1) / 2, (side - 1) / 2, CENTRAL_SIGMA * side]).expand_as(gaussians)

    def render(self, pictures: Tensor, gaussians: Tensor, rendering: Rendering) -> Tensor:
        """The object before the mean background, or the picture's background alone: (B, 3, S, S)."""
        make = composites.background_alone if rendering == "background" else composites.composite
        return make(pictures, gaussians, self.mean_background)


class PictureMethod(Method):
    """A trained method together with its input: predicts from pictures, like a method that has no backbone."""

    def __init__(self, method_input: MethodInput, method: Method) -> None:
        """Join the two; nothing is copied."""
        nn.Module.__init__(self)  # its state is that of its two parts
        self.input = method_input
        self.method = method

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C)."""
        return self.heads(images)[ENSEMBLE]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, C) of every head."""
        return self.method.heads(cast(Rendered, self.input(images)).inputs)

    def locate(self, images: Tensor) -> Tensor | None:
        """(B, 3, S, S) -> gaussians (B, 3)."""
        return self.input.locate(self.input.encode(images))

    def predict(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Both at the cost of one."""
        heads, rendered = self.render_and_predict(images)
        return heads, rendered.gaussians

    def render_and_predict(self, images: Tensor) -> tuple[dict[str, Tensor], Rendered]:
        """Logits (B, C) of every head, and what was computed for them."""
        rendered = cast(Rendered, self.input(images))
        return self.method.heads(rendered.inputs), rendered
