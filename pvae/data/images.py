"""Images among a user's arrays: where their channels stand, and the one scale of all their splits."""

import numpy as np

from pvae.data.numpy_files import Array

__all__ = ["are_images", "as_images", "check_layout"]

# Images are larger, numbers of channels are not.
_SMALL = 4


def are_images(arrays: dict[str, Array]) -> bool:
    """Whether all splits are bytes in 3 dims or more, (N, H, W) or (N, C, H, W)."""
    return all(x.dtype == np.uint8 and x.ndim >= 3 for x in arrays.values())


def check_layout(array: Array, where: str) -> None:
    """Raises ValueError for (N, H, W, C) with 1, 3 or 4 channels last, and for what may be one picture (H, W, C)."""
    shape = array.shape
    if array.ndim == 4 and shape[3] in (1, 3, 4) and min(shape[1:3]) > _SMALL:
        raise ValueError(
            f"{where} has shape {shape}: images of {shape[1]} x {shape[2]} with {shape[3]} channels last, or "
            f"{shape[1]} channels of {shape[2]} x {shape[3]}? Channels come first here: save numpy.moveaxis(x, -1, 1), "
            "or give pvae.data.DataSet the tensor as it is"
        )
    if array.dtype == np.uint8 and array.ndim == 3 and shape[2] in (3, 4) and min(shape[:2]) > _SMALL:
        raise ValueError(
            f"{where} has shape {shape}: one picture with {shape[2]} channels last, or {shape[0]} images of "
            f"{shape[1]} x {shape[2]}? Save many pictures as (N, {shape[2]}, H, W), or such images as (N, 1, H, W)"
        )


def as_images(arrays: dict[str, Array]) -> tuple[dict[str, Array], str]:
    """Bytes as images (N, C, H, W) in [0, 1], float32, and a note of their scale, which is that of all splits."""
    largest = max(int(x.max()) for x in arrays.values())
    images = {split: (x[:, None] if x.ndim == 3 else x).astype(np.float32) for split, x in arrays.items()}
    if largest <= 1:
        return images, ""
    # Of bytes that are dark in every split, a person may know that 255 is not their white.
    note = "divided by 255" + (f", the largest value being {largest}" if largest < 128 else "")
    return {split: x / np.float32(255) for split, x in images.items()}, note
