"""A model and its guide as one thing: looked at once, run many times, in a param store of their own.

Example: for x (3, 64) and a latent z (3, 8),

    pair = Pair(model, guide)
    run = pair.run((x,), 2)           # K = 2 particles of B = 3 data
    run.latents["z"].shape            # (2, 3, 8)
    run.log_weights().values.shape    # (2, 3)

The first run looks at the pair and has the referee compare its log weights with Pyro's own; another batch of the same
shapes runs at once. Users pass two callables: a `Pair` lives as long as one call of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from pvae.pair import look
from pvae.pair.contexts import evaluation, seeded
from pvae.pair.layout import Layout
from pvae.pair.pair_run import PairRun
from pvae.pair.parameters import Parameters, Source, find_and_place
from pvae.pair.run import Stochastic, run_pair
from pvae.pair.sites import Batch
from pvae.pair.store import own_store

__all__ = ["Pair"]


class Pair:
    """A model and its guide, or a model alone, which then proposes from its prior.

    A guide by itself is a pair, too: `Pair(guide)` runs it in place of a model, so that no decoder need run.

    Args:
        model: the model.
        guide: its guide.
        in_own_store: whether to run in a param store of the pair's. An objective runs where it is called, for Pyro's
            own `SVI` keeps parameters in the global store.
    """

    def __init__(self, model: Stochastic, guide: Stochastic | None = None, *, in_own_store: bool = True) -> None:
        self.model, self.guide, self.in_own_store = model, guide, in_own_store
        self._layouts: dict[tuple[object, ...], Layout] = {}

    def is_of(self, model: Stochastic, guide: Stochastic | None) -> bool:
        """Whether these are its functions."""
        return (self.model, self.guide) == (model, guide)

    def inside(self) -> AbstractContextManager[None]:
        """The pair's own param store, entered once however often it is asked for."""
        return own_store(self.model, self.guide) if self.in_own_store else nullcontext()

    @contextmanager
    def evaluated(
        self, source: Source, device: torch.device | str | None = None, seed: int = 0
    ) -> Iterator[Parameters]:
        """Inside, with data and parameters on one device, nets in evaluation mode, no gradients, and draws by `seed`.

        Raises: ValueError if the pair cannot run on the data at all, or the device cannot be used.
        """
        with self.inside(), torch.no_grad():
            parameters = find_and_place(self.model, self.guide, source, device)
            with seeded(seed, parameters.device), evaluation(parameters.modules):
                yield parameters

    def look(self, batch: Batch) -> Layout:
        """Where the sites and plates of the pair are, whatever its log weights are worth.

        Raises: ValueError for a pair without a plate over the data.
        """
        with self.inside():
            return look.look(self.model, self.guide, batch)

    def layout(self, batch: Batch, num_samples: int) -> Layout:
        """How to run the pair with that many particles, found once for all batches of these shapes.

        Raises: ValueError, with the site and the reason, if a log weight would be wrong; `NoParticles` if that is so
            for several particles alone.
        """
        key = (num_samples > 1, *((part.shape, part.dtype, part.device) for part in batch))
        if key not in self._layouts:
            with self.inside():
                self._layouts[key] = look.read_layout(self.model, self.guide, batch, num_samples)
        return self._layouts[key]

    def run(
        self,
        batch: Batch,
        num_samples: int,
        *,
        given: Mapping[str, Tensor] | None = None,
        split: bool = False,
        branch: bool = False,
        layout: Layout | None = None,
    ) -> PairRun:
        """Run the guide, then the model on its draws, with K particles.

        Args:
            batch: the data.
            num_samples: K.
            given: values of latent sites to use instead of draws, each (K, B, ...).
            split: cut the graph between a draw and what is computed from it (see `PairRun.drawn`).
            branch: run K particles at each joint state of the guide's annotated sites (see `PairRun.branches`).
            layout: another way to run than the pair's own.

        Raises: ValueError if the log weights of the pair would be wrong.
        """
        layout = self.layout(batch, num_samples) if layout is None else layout
        with self.inside():
            return run_pair(self.model, self.guide, batch, num_samples, layout, given=given, split=split, branch=branch)
