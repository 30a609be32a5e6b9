"""How long a training run is: so many steps, or so many passes over data that may not tell how long a pass is.

Example: 3 epochs of a stream are at an end after 3 passes; how many steps these take is known from the first pass on,
as far as the others are of the same length.
"""

from __future__ import annotations

__all__ = ["Length"]


class Length:
    """The length of a run by `steps`, or by `epochs` of `num_batches` each, None for a stream.

    Attributes: `total`, the steps to expect of all epochs together; None while that is not known.
    """

    def __init__(self, epochs: int | None, steps: int | None, num_batches: int | None) -> None:
        self.epochs, self.steps = epochs, steps
        self.total = steps if epochs is None else None if num_batches is None else epochs * num_batches

    def is_reached(self, epochs: int, steps: int) -> bool:
        """Whether so many epochs and steps are all of them."""
        return epochs == self.epochs or steps == self.steps

    def end_epoch(self, epochs: int, steps: int) -> None:
        """Expect of the epochs to come what those so far took."""
        if self.epochs is not None:
            self.total = round(steps / epochs * self.epochs)

    def left(self, steps: int) -> int:
        """How many steps to expect after so many: as many again, where nothing is known."""
        return max(steps, 1) if self.total is None else max(self.total - steps, 0)

    def known(self, what: str) -> int:
        """The steps of the whole run, for what needs to know them before it begins.

        Raises: ValueError where the data do not tell.
        """
        if self.total is None:
            raise ValueError(f"{what} needs the number of steps, which a stream does not tell; give steps= for epochs=")
        return self.total
