"""What the captions of other photographs let one expect of a photograph's own: kernel ridge regression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.errors import DataError

__all__ = ["check_consensus", "expected_from", "leave_one_out"]

MOST_PHOTOS = 20_000  # whose pairs take 3 GB, some three times over
SHARPNESS = 2.0  # of the kernel, exp(sharpness * (cosine - 1))
RIDGE = 0.3  # what is added to its diagonal


def check_consensus(photos: int) -> None:
    """Raise DataError where :func:`leave_one_out` cannot compare so many photos."""
    if not 2 <= photos <= MOST_PHOTOS:
        raise DataError(
            f"a consensus compares each photo with every other, of 2 to {MOST_PHOTOS}, not {photos}: "
            "leave --consensus out"
        )


def leave_one_out(features: Tensor, *, sharpness: float = SHARPNESS, ridge: float = RIDGE) -> Tensor:
    """How a photo's captions follow from those of all other photos of a set that look like it.

    That is kernel ridge regression with the photo itself left out, for which there is a closed form: the
    prediction of anything that is known of all photos is the sum of what is known, weighted so.

    Args:
        features: of the photos, ``(photos, C)``: those are alike whose cosine is large, once each channel is
            standardised.
        sharpness: of the kernel, ``exp(sharpness * (cosine - 1))``.
        ridge: what is added to its diagonal.

    Returns:
        The weights ``(photos, photos)``, which may be negative: a row sums to 1, and has 0 for its own photo.
    """
    photos = len(features)
    inverse = _inverse(_standardised(features, features), sharpness, ridge)
    weights = inverse / -inverse.diagonal()[:, None]
    weights.diagonal().zero_()
    weights += (1 - weights.sum(1, keepdim=True)) / (photos - 1)  # a prediction shrinks to the mean, not to 0
    weights.diagonal().zero_()
    result: Tensor = weights.float()
    return result


def expected_from(
    features: Tensor, known: Tensor, *, sharpness: float = SHARPNESS, ridge: float = RIDGE
) -> Tensor:
    """The same weights for photos ``(Q, C)`` that are not among the ``known`` ones ``(N, C)``: ``(Q, N)``."""
    photos = _standardised(known, known)
    kernel = (sharpness * (_standardised(features, known) @ photos.T - 1)).exp_()
    weights = kernel @ _inverse(photos, sharpness, ridge)
    weights += (1 - weights.sum(1, keepdim=True)) / len(known)
    result: Tensor = weights.float()
    return result


def _standardised(features: Tensor, known: Tensor) -> Tensor:
    return F.normalize((features - known.mean(0)) / (known.std(0) + 1e-3)).double()


def _inverse(scaled: Tensor, sharpness: float, ridge: float) -> Tensor:
    kernel = (sharpness * (scaled @ scaled.T - 1)).exp_()
    kernel.diagonal().add_(ridge)
    inverse: Tensor = torch.linalg.inv(kernel)
    return inverse
