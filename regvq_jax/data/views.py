"""Several crops and flips of an image in a token cache: augmentation for what is encoded only once."""

import dataclasses

import numpy as np

from regvq_jax.data.transforms import Element, cut_view
from regvq_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Views:
    """Which pictures a token cache has of each image.

    View 0 is the centre crop; random crops follow. With `flip` every crop is followed by a mirrored
    view; mirrored random crops are crops of their own. Nothing is mirrored where a caption names left
    or right: such an image's centre crop is there twice, and its other views are plain random crops,
    so that it counts as much as any other.

    Attributes:
        random_crops: besides the centre crop; place and scale as in `transforms.resize_and_crop`.
        flip: mirrored views too.
        max_scale: of the random crops, at least 1.
        seed: a view depends on (seed, image, view) alone; at least 0.
    """

    random_crops: int = 0
    flip: bool = False
    max_scale: float = 1.1
    seed: int = 0

    def __post_init__(self):
        if self.random_crops < 0:
            raise UserError(f"random_crops must be at least 0, got {self.random_crops}.")
        if self.max_scale < 1.0:
            raise UserError(f"max_scale must be at least 1, got {self.max_scale}.")
        if self.seed < 0:
            raise UserError(f"The seed of random crops must be at least 0, got {self.seed}.")

    @property
    def count(self) -> int:
        """V, the number of views of an image."""
        return (1 + self.random_crops) * (2 if self.flip else 1)

    @property
    def recipe(self) -> str:
        """What the views depend on, in words; "" for the centre crop alone."""
        if self.count == 1:
            return ""
        parts = ["centre crop"]
        if self.random_crops:
            parts.append(f"{self.random_crops} random (scale to {self.max_scale:g}, seed {self.seed})")
        if self.flip:
            parts.append("each mirrored too")
        return ", ".join(parts)

    def cut(self, element: Element, image: int, view: int, size: int) -> Element:
        """Cuts one view of an image, and of its label map alike.

        Args:
            element: "image": uint8 [H, W, 3]; optional "labels": uint8 [H, W]; its captions, if any.
            image: the image's index in its source.
            view: in [0, V).
            size: S.

        Returns:
            The element with "image": uint8 [S, S, 3] and "labels": uint8 [S, S].
        """
        crop, mirrored = divmod(view, 2) if self.flip else (view, 0)
        rng = np.random.default_rng((self.seed, image, view)) if crop else None
        return cut_view(element, rng, size=size, mirrored=bool(mirrored), max_scale=self.max_scale)
