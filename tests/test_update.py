"""One kernel moves the weights as the optimizer would, and a GPU need not be waited for."""

import math

import pytest
import torch

import pvae
from pvae.training.ledger import Ledger
from pvae.training.update import Update
from tests.test_modes import SHARED, pair

OPTIMIZERS = {
    "Adam": lambda leaves: torch.optim.Adam(leaves, lr=0.1, fused=True),
    "Adam with decay": lambda leaves: torch.optim.Adam(leaves, lr=0.1, weight_decay=0.1, fused=True),
    "AdamW": lambda leaves: torch.optim.AdamW(leaves, lr=0.1, betas=(0.8, 0.9), eps=1e-3, fused=True),
    "Adam that ascends": lambda leaves: torch.optim.Adam(leaves, lr=0.1, maximize=True, fused=True),
    "Adam, one by one": lambda leaves: torch.optim.Adam(leaves, lr=0.1),
    "amsgrad": lambda leaves: torch.optim.Adam(leaves, lr=0.1, amsgrad=True, fused=True),
    "SGD": lambda leaves: torch.optim.SGD(leaves, lr=0.1, momentum=0.9),
}
FUSED = {"Adam", "Adam with decay", "AdamW", "Adam that ascends"}


def leaves():
    return [torch.ones(3, requires_grad=True), torch.full((2, 2), -1.0, requires_grad=True)]


@pytest.mark.parametrize("kinds", [1, 2], ids=["one kernel", "two dtypes"])
def test_gradients_in_another_layout_than_their_leaf_move_the_right_numbers(kinds):
    """`autograd.grad` gives a transposed weight's gradient transposed, and a fused kernel on a CPU does not look."""

    def weights():
        own = [torch.ones(3, 4, requires_grad=True), torch.ones(2, dtype=torch.float64, requires_grad=True)]
        return own[:kinds]

    ours, theirs = weights(), weights()
    update, reference = Update(OPTIMIZERS["Adam"](ours)), torch.optim.Adam(theirs, lr=0.1, fused=False)
    for step in range(3):
        torch.manual_seed(step)
        gradients = [torch.randn(4, 3).t(), torch.randn(2, dtype=torch.float64)][:kinds]
        update(ours, gradients)
        for leaf, gradient in zip(theirs, gradients, strict=True):
            leaf.grad = gradient
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_a_step_of_the_optimizer(name):
    """The second leaf has a gradient in every third step only, and the rate falls."""
    ours, theirs = leaves(), leaves()
    update, reference = Update(OPTIMIZERS[name](ours)), OPTIMIZERS[name](theirs)
    assert update.is_fused == (name in FUSED)
    for step in range(7):
        torch.manual_seed(step)
        gradients = [torch.randn(3), torch.randn(2, 2) if step % 3 == 0 else None]
        for optimizer in (update.optimizer, reference):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        update(ours, gradients)
        for leaf, gradient in zip(theirs, gradients, strict=True):
            leaf.grad = gradient
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    torch.testing.assert_close(
        [update.optimizer.state[leaf] for leaf in ours], [reference.state[leaf] for leaf in theirs], rtol=0, atol=0
    )


def test_nothing_moves_from_the_first_broken_step_on():
    own = leaves()
    update, ledger = Update(OPTIMIZERS["Adam"](own)), Ledger(torch.device("cpu"))
    batches = [(torch.full((step + 1, 2), float(step)),) for step in range(6)]
    seen = []
    for step, batch in enumerate(batches):
        loss = math.nan if step == 3 else 10.0 - step
        ledger.add(torch.tensor([loss, 1.0, loss + 0.5]), batch)
        update(own, [torch.ones(3), torch.ones(2, 2)], ledger.broken)
        seen.append([leaf.detach().clone() for leaf in own])
    assert not seen[2][0].equal(seen[1][0])
    for later in seen[3:]:
        torch.testing.assert_close(later, seen[2], rtol=0, atol=0)
    number, loss, norm, batch = ledger.read()
    assert (number, math.isnan(loss), norm) == (4, True, 1.0)
    assert batch is batches[3]
    assert ledger.losses == [10.0, 9.0, 8.0]
    assert ledger.mean(1) == pytest.approx((9.5 * 2 + 8.5 * 3) / 5)


def test_a_ledger_asks_to_be_read_before_it_holds_much():
    ledger = Ledger(torch.device("cpu"))
    due = [ledger.add(torch.ones(3), (torch.ones(1),)) for _ in range(50)]
    assert due == [False] * 49 + [True]
    assert ledger.read() is None
    assert len(ledger.losses) == 50
    assert ledger.read() is None
    large = torch.empty(2**25)
    assert [ledger.add(torch.ones(3), (large,)) for _ in range(2)] == [False, True]


@pytest.mark.parametrize("step_mode", ["traced", "compiled"])
def test_weights_that_a_callback_replaces_are_the_ones_that_train_on(step_mode):
    """`leaf.data = ...` gives a leaf other memory; the graph and the kernel have to follow it."""
    found = {}
    for mode in ("eager", step_mode):
        model, guide, x = pair("VAE", "MeanField")

        def renew(record, model=model):
            for leaf in model.parameters():
                leaf.data = leaf.data * 0.5

        options = {"step_mode": mode, "callbacks": [renew], "progress": False, **SHARED}
        found[mode] = pvae.fit(model, guide, x, epochs=4, batch_size=4, **options)
        assert found[mode].step_mode == mode
    torch.testing.assert_close(found[step_mode].losses, found["eager"].losses, rtol=1e-5, atol=0)
