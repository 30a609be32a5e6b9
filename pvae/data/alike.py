"""Splits that were saved apart must be of one shape and dtype, and on one scale."""

from pvae.data.numpy_files import Array

__all__ = ["check_alike"]

_KINDS = {"b": "bool", "i": "integers", "u": "integers", "f": "floats"}
# As far beyond [0, 1] a test split may reach, since the scale is often that of the training data.
_FAR = 10


def check_alike(arrays: dict[str, Array], where: str, *, images: bool) -> None:
    """Raises ValueError if splits differ in shape or in floats, integers or bytes, or only one lies far beyond [0, 1].

    Bytes of images have one scale for all splits, however dark one is.
    """
    shape = next(iter(arrays.values())).shape[1:]
    for split, x in arrays.items():
        if x.shape[1:] != shape:
            raise ValueError(f"{where}: {split} must match train's {shape}, got {x.shape[1:]}: reshape it")
    kinds = {split: "uint8" if x.dtype == "uint8" else _KINDS[x.dtype.kind] for split, x in arrays.items()}
    if len(set(kinds.values())) > 1:
        words = ", ".join(f"{split} of {kind}" for split, kind in kinds.items())
        raise ValueError(f"{where} must hold splits of one dtype, got {words}: save them as one dtype, on one scale")
    if images:
        return
    reach = {split: max(abs(float(x.min())), abs(float(x.max()))) for split, x in arrays.items()}
    near = next((split for split, x in arrays.items() if x.min() >= 0 and x.max() <= 1), None)
    far = max(reach, key=lambda split: reach[split])
    if near is not None and reach[far] > _FAR:
        raise ValueError(
            f"{where} must hold splits on one scale, got {near} in [0, 1] and {far} as far as {reach[far]:g}: save "
            "them on one scale"
        )
