"""From decoded pixels to the tensor a checkpoint was trained on: the description that travels with the bundle."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Decode = Literal["exact", "fast"]
"""Where JPEGs are decoded for a GPU: ``exact`` on the CPU, to Pillow's pixels; ``fast`` on the GPU, close to them."""
MAX_EDGE: Final = 2**14
"""Pixels of a side of what an image is resized or cropped to."""
Edge = Annotated[int, Field(gt=0, le=MAX_EDGE)]
Size = tuple[Edge, Edge]
"""Height and width, in pixels."""
Channels = tuple[float, float, float]
"""One value each for red, green and blue."""


class Squash(BaseModel):
    """Resize to a fixed size, whatever that does to the aspect ratio."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["squash"] = "squash"
    size: Size


class ShortestEdge(BaseModel):
    """Resize so that the shorter side has ``edge`` pixels and the longer ``int(edge * long / short)``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["shortest_edge"] = "shortest_edge"
    edge: Edge


class Preprocessing(BaseModel):
    """What happens to an RGB image of 8 bits a channel before the model sees it, in this order.

    Attributes:
        resize: How the image is resized, or None to leave it at its size.
        filter: Pillow's resampling filter for the resize.
        crop: Height and width of the central crop after the resize (zero-padded where the image is smaller), or None.
        rescale: Factor applied to the pixel values 0..255, usually 1/255, or None.
        mean: Mean subtracted per channel after rescaling, or None for no normalisation.
        std: Standard deviation divided by per channel, given exactly when ``mean`` is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: Annotated[Squash | ShortestEdge, Field(discriminator="kind")] | None
    filter: Filter = "bilinear"
    crop: Size | None = None
    rescale: PositiveFloat | None = 1 / 255
    mean: Channels | None = None
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None

    @model_validator(mode="after")
    def _mean_goes_with_std(self) -> Preprocessing:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are given together or not at all")
        return self

    @property
    def output_size(self) -> Size | None:
        """Height and width every image comes out with, or None where they depend on the image."""
        if self.crop is not None:
            return self.crop
        if isinstance(self.resize, Squash):
            return self.resize.size
        return None
