"""Training: what every option of `fit` does, checked by its effect."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pvae
from pvae.data import DataSet
from pvae.data.batches import Batches
from pvae.guides import MeanField
from pvae.models import VAE, LinearGaussian
from pvae.objectives import ELBO
from pvae.training import linear_warmup
from tests import own_pairs


def small(num_data=60, dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(num_data, 5, dtype=dtype) @ torch.randn(5, 5, dtype=dtype)
    model = LinearGaussian(5, 2).to(dtype)
    return model, MeanField(model, x, hidden=(8,)), x


def weights_of(*modules):
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()]).clone()


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    ends = []
    for seed in (0, 0, 1):
        model, guide, x = small()
        pvae.fit(model, guide, x, epochs=3, batch_size=16, seed=seed)
        ends.append(weights_of(model, guide))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_a_step_is_adam_on_the_mean_loss_per_datum():
    model, guide, x = small(dtype=torch.float64)
    twin_model, twin_guide, _ = small(dtype=torch.float64)
    result = pvae.fit(model, guide, x, steps=4, batch_size=60, lr=1e-2, seed=7)
    optimizer = torch.optim.Adam([*twin_guide.parameters(), *twin_model.parameters()], lr=1e-2)
    objective, order = ELBO(), torch.Generator().manual_seed(7)
    losses = []
    objective.bound(twin_model, twin_guide, x)
    torch.manual_seed(7)
    for _ in range(4):
        optimizer.zero_grad()
        batch = x[torch.randperm(60, generator=order)]
        loss = -objective.bound(twin_model, twin_guide, batch).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(result.losses, torch.tensor(losses, dtype=torch.float64))
    torch.testing.assert_close(weights_of(model, guide), weights_of(twin_model, twin_guide))


@pytest.mark.parametrize("make", [lambda x: x, lambda x: (x,), lambda x: DataSet("x", train=x), lambda x: x.numpy()])
def test_every_form_of_data_gives_the_same_training(make):
    model, guide, x = small()
    expected = pvae.fit(*small()[:2], x, epochs=2, batch_size=16).losses
    torch.testing.assert_close(pvae.fit(model, guide, make(x), epochs=2, batch_size=16).losses, expected)


def test_any_data_loader_trains_and_is_evaluated():
    model, guide, x = small()
    losses = [
        pvae.fit(*small()[:2], loader, epochs=2).losses
        for loader in (DataLoader(x, batch_size=25), DataLoader(TensorDataset(x), batch_size=25))
    ]
    assert len(losses[0]) == 6
    assert torch.equal(*losses)
    pvae.fit(model, guide, x, steps=300, batch_size=60, lr=1e-2)
    whole = pvae.log_marginal(model, guide, DataLoader(x, batch_size=25))
    assert whole.values.shape == (60,)
    other = pvae.log_marginal(model, guide, x, batch_size=25)
    error = (whole.mc_standard_errors.square() + other.mc_standard_errors.square()).sqrt()
    trusted = (whole.khat < 0.5) & (other.khat < 0.5)
    assert trusted.sum() > 20
    assert ((whole.values - other.values).abs() < 5 * error)[trusted].all()


def test_steps_count_across_epochs_and_ragged_batches():
    model, guide, x = small()
    result = pvae.fit(model, guide, x, steps=11, batch_size=25)
    assert len(result.losses) == 11
    assert [record["step"] for record in result.history] == [3, 6, 9, 11]
    whole = pvae.fit(*small()[:2], x, epochs=2, batch_size=25)
    assert [record["step"] for record in whole.history] == [3, 6]
    # A mean over data, not over batches: the last batch holds 10 of 60.
    expected = -(whole.losses[:3] * torch.tensor([25.0, 25.0, 10.0])).sum() / 60
    assert whole.history[0]["train_bound"] == pytest.approx(expected.item())


def test_kl_warm_up_weighs_each_step():
    asked = []

    def schedule(step):
        asked.append(step)
        return linear_warmup(10, start=0.2)(step)

    model, guide, x = small()
    history = pvae.fit(model, guide, x, epochs=4, batch_size=20, kl_schedule=schedule).history
    assert sorted(set(asked)) == list(range(13))
    assert [record["kl_weight"] for record in history] == pytest.approx([0.44, 0.68, 0.92, 1.0])


def test_gradients_are_clipped_by_their_common_norm():
    moved = []
    for clip_norm in (None, 1e-3):
        model, guide, x = small()
        before = weights_of(model, guide)
        pvae.fit(
            model, guide, x, steps=1, batch_size=60, clip_norm=clip_norm, optimizer=lambda p: torch.optim.SGD(p, 0.1)
        )
        moved.append((weights_of(model, guide) - before).norm().item())
    assert moved[0] > 0.01
    assert moved[1] == pytest.approx(1e-4, rel=1e-2)


def test_weight_average_is_the_formula():
    path = []
    model, guide, x = small()
    pvae.fit(model, guide, x, steps=6, batch_size=60, ema=0.9)
    for steps in range(1, 7):
        plain = small()
        pvae.fit(*plain[:2], x, steps=steps, batch_size=60)
        path.append(weights_of(*plain[:2]))
    average = weights_of(*small()[:2])
    for t, point in enumerate(path, start=1):
        decay = min(0.9, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * point
    torch.testing.assert_close(weights_of(model, guide), average)


def test_any_optimizer_and_scheduler():
    model, guide, x = small()
    rates = []
    pvae.fit(
        model,
        guide,
        x,
        epochs=3,
        batch_size=20,
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.1),
        schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.1),
        callbacks=[lambda record: rates.append(record["lr"])],
    )
    assert rates == pytest.approx([0.01, 0.001, 0.0001])
    cosine = pvae.fit(*small()[:2], x, epochs=4, batch_size=20, lr=0.1, schedule="cosine")
    assert [r["lr"] for r in cosine.history] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * e / 4)) for e in (1, 2, 3, 4)]
    )
    plateau = pvae.fit(
        *small()[:2],
        x,
        epochs=4,
        batch_size=60,
        lr=1e-3,
        schedule=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.9),
    )
    assert plateau.history[-1]["lr"] < 1e-3


def test_early_stopping_restores_the_best_weights():
    model, guide, x = small()
    # Trained on one half of the space and validated on the other, so that the bound must fall after a while.
    data = DataSet("shifted", train=x[:30] + 20, valid=x[30:])
    result = pvae.fit(model, guide, data, epochs=50, batch_size=30, lr=0.2, early_stopping=3, seed=1)
    bounds = [record["valid_bound"] for record in result.history]
    assert len(bounds) == result.best_epoch + 3 < 50
    assert bounds[result.best_epoch - 1] == max(bounds)
    again = pvae.fit(model, guide, DataSet("same", train=x[:30] + 20, valid=x[30:]), epochs=1, batch_size=30, lr=1e-12)
    assert again.history[0]["valid_bound"] == pytest.approx(max(bounds), rel=1e-5)


def test_a_callback_sees_every_epoch_and_may_stop():
    model, guide, x = small()
    seen = []

    def stop_at_three(record):
        seen.append(record["epoch"])
        return record["epoch"] == 3

    assert len(pvae.fit(model, guide, x, epochs=9, callbacks=[stop_at_three]).history) == 3
    assert seen == [1, 2, 3]


def test_trained_values_are_shown_within_their_constraints():
    def model(x):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * pyro.param("slope", torch.tensor(0.0)), 0.7))

    torch.manual_seed(0)
    x = torch.randn(500) * math.sqrt(1 + 0.5**2)
    values = pvae.fit(model, guide, x, steps=1500, batch_size=500, lr=2e-2, schedule="cosine").parameters
    assert set(values) == {"scale", "slope"}
    # With the guide's scale s fixed at 0.7, the ELBO is greatest at slope 1 / (1 + v) and v = E (x - z)^2.
    v, slope = values["scale"].item() ** 2, values["slope"].item()
    assert slope == pytest.approx(1 / (1 + v), abs=0.03)
    assert v == pytest.approx((1 - slope) ** 2 * x.square().mean().item() + 0.7**2, abs=0.03)
    assert len(pyro.get_param_store()) == 0


def test_inference_steps_train_the_guide_alone():
    model, guide, x = small()
    before = weights_of(model), weights_of(guide)
    pvae.fit(model, guide, x, steps=4, inference_steps=5)
    assert torch.equal(weights_of(model), before[0])
    assert not torch.equal(weights_of(guide), before[1])
    pvae.fit(model, guide, x, steps=5, inference_steps=5)
    assert not torch.equal(weights_of(model), before[0])


def test_a_run_folder_holds_metrics_and_weights(tmp_path):
    model, guide, x = small()
    result = pvae.fit(model, guide, x, epochs=3, out=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["train_bound"] for line in lines] == [r["train_bound"] for r in result.history]
    other = small()
    pvae.load(tmp_path / "run", *other[:2])
    assert torch.equal(weights_of(*other[:2]), weights_of(model, guide))
    with pytest.raises(ValueError, match="exists and is not empty; choose a new folder, nothing was overwritten"):
        pvae.fit(model, guide, x, epochs=1, out=tmp_path / "run")


class Breaks(nn.Module):
    """A model whose likelihood turns to nan once its parameter has been pushed past a wall."""

    def __init__(self):
        super().__init__()
        self.wall = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        pyro.module("breaks", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            # The density at 0 has no bound as the scale falls, so every step pushes towards the wall.
            pyro.sample("x", dist.Normal(torch.zeros_like(x), self.wall.sqrt()), obs=x)


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("step_mode", ["eager", "traced"])
def test_a_loss_that_is_not_finite_names_step_site_and_parameter_and_keeps_the_last_weights(step_mode, validated):
    torch.manual_seed(0)
    x = torch.zeros(20)
    model = Breaks()
    guide = MeanField(model, x, hidden=(4,))
    path = []
    with pytest.raises(FloatingPointError) as caught, pyro.validation_enabled(validated):
        pvae.fit(
            model,
            guide,
            x,
            steps=100,
            batch_size=20,
            step_mode=step_mode,
            optimizer=lambda p: torch.optim.SGD(p, 0.3),
            callbacks=[lambda record: path.append(weights_of(model, guide))],
        )
    message = str(caught.value)
    assert message.startswith(f"step {len(path) + 1}: loss nan")
    assert "site 'x' in the model" in message
    assert "parameter" in message
    assert "wall" in message
    assert "\n" not in message
    assert torch.equal(weights_of(model, guide), path[-1])


def test_dynamic_binarisation_is_drawn_afresh_each_epoch():
    seen = []

    class Watch(VAE):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    torch.manual_seed(0)
    grey = DataSet("grey", train=torch.full((200, 6), 0.3), kind="unit", binarize="dynamic")
    model = Watch((6,), 2)
    guide = MeanField(model, grey.train[:2], hidden=(4,))
    seen.clear()
    pvae.fit(model, guide, grey, epochs=20, batch_size=200, step_mode="eager")
    draws = torch.stack([x for x in seen if len(x) == 200])[-20:]
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert abs(draws.mean() - 0.3) < 5 * math.sqrt(0.21 / draws.numel())
    assert not torch.equal(draws[0], draws[1])


def test_the_plain_autoencoder_minimises_reconstruction():
    torch.manual_seed(0)
    x = torch.randn(100, 2) @ torch.randn(2, 6)
    model = VAE((6,), 2, likelihood=pvae.models.likelihoods.Gaussian(1.0), decoder=nn.Linear(2, 6))
    guide = pvae.guides.Delta(model, x, encoder=nn.Identity())
    pvae.fit(model, guide, x, objective=ELBO(beta=0.0), steps=1500, batch_size=100, lr=2e-2, schedule="cosine")
    rebuilt = pvae.reconstruct(model, guide, x)["x"]
    # Rank-2 data through two codes: the best linear autoencoder, as PCA, loses nothing.
    assert (rebuilt - x).square().mean() < 1e-4 * x.square().mean()


def test_progress_is_silent_without_a_terminal(capfd):
    model, guide, x = small()
    pvae.fit(model, guide, x, epochs=1, progress=True)
    assert capfd.readouterr() == ("", "")


def test_inference_steps_are_refused_where_the_guide_has_no_parameter_of_its_own():
    pair = own_pairs.convolutional()
    with pytest.raises(ValueError, match="register the guide's nets in the guide only"):
        pvae.fit(pair.model, pair.guide, pair.batch, steps=2, inference_steps=2, progress=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there to capture on")
def test_a_cuda_graph_on_a_cpu_is_refused_with_the_mode_to_use():
    pair = own_pairs.plain()
    with pytest.raises(ValueError, match="needs a CUDA device, the pair is on cpu; use 'compiled'"):
        pvae.fit(pair.model, pair.guide, pair.batch, steps=2, step_mode="graph", progress=False)


@pytest.mark.parametrize(("steps", "mode"), [(3, "eager"), (1000, "traced")])
def test_auto_names_the_mode_that_ran(steps, mode):
    pair = own_pairs.plain()
    assert pvae.fit(pair.model, pair.guide, pair.batch, steps=steps, progress=False).step_mode == mode


# --- a last batch that is too small


class Normalised(nn.Module):
    """A pair with BatchNorm in its encoder, which nothing but two data or more can train."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.Linear(2, 4)
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, raw = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


@pytest.mark.parametrize(("options", "num_steps"), [({"epochs": 3}, 6), ({"steps": 5}, 5)])
def test_a_remainder_that_cannot_be_trained_on_joins_the_batch_before_it(options, num_steps):
    pair, x = Normalised(), torch.randn(21, 4)
    state = torch.get_rng_state()
    result = pvae.fit(pair.model, pair.guide, x, batch_size=10, progress=False, **options)
    assert len(result.losses) == num_steps
    assert torch.equal(torch.get_rng_state(), state)
    # The look left no trace in the running statistics.
    assert pair.encoder[1].num_batches_tracked == num_steps
    sizes = [len(batch) for (batch,) in _batches(x, 10, joins=True)]
    assert sizes == [10, 11]


def test_a_remainder_that_can_be_trained_on_stays_a_batch():
    pair, x = Normalised(), torch.randn(22, 4)
    assert len(pvae.fit(pair.model, pair.guide, x, batch_size=10, epochs=2, progress=False).losses) == 6
    assert [len(batch) for (batch,) in _batches(x, 10, joins=False)] == [10, 10, 2]


def _batches(x, batch_size, joins):
    source = Batches(x, batch_size)
    if joins:
        source.join_last()
    batches = list(source.epoch(shuffle=True))
    assert len(batches) == source.num_batches
    assert torch.equal(torch.cat([batch for (batch,) in batches]).sort(0).values, x.sort(0).values)
    return batches


def test_joined_batches_train_as_batches_of_their_sizes_do():
    joined, by_hand = Normalised(), Normalised()
    x = torch.randn(5, 4)
    options = {"progress": False, "optimizer": lambda leaves: torch.optim.SGD(leaves, lr=1e-2)}
    first = pvae.fit(joined.model, joined.guide, x, batch_size=4, epochs=4, seed=1, **options)
    second = pvae.fit(by_hand.model, by_hand.guide, x, batch_size=5, epochs=4, seed=1, **options)
    assert torch.equal(first.losses, second.losses)
    assert torch.equal(weights_of(joined), weights_of(by_hand))


def test_a_single_datum_is_refused_before_training_where_two_are_needed():
    for num_data, batch_size in ((1, 10), (3, 1)):
        pair = Normalised()
        before = weights_of(pair)
        with pytest.raises(ValueError, match="batch_size") as refusal:
            pvae.fit(pair.model, pair.guide, torch.randn(num_data, 4), batch_size=batch_size, epochs=1, progress=False)
        assert "\n" not in str(refusal.value)
        assert torch.equal(weights_of(pair), before)
        assert pair.encoder[1].num_batches_tracked == 0


def test_a_model_for_batches_of_one_size_is_refused_before_training():
    pair = Normalised()

    def model(x):
        pyro.module("decoder", pair.decoder)
        with pyro.plate("ten data", 10):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(pair.decoder(z), 1.0).to_event(1), obs=x)

    before = weights_of(pair)
    with pytest.raises(ValueError, match=r"cannot train on the last batch, of 3: the pair .* choose a batch_size"):
        pvae.fit(model, pair.guide, torch.randn(23, 4), batch_size=10, epochs=1, progress=False)
    assert torch.equal(weights_of(pair), before)


def test_a_validation_split_that_leaves_one_datum_is_joined_too():
    pair = Normalised()
    data = DataSet("floats", train=torch.randn(20, 4), valid=torch.randn(11, 4))
    options = {"objective": pvae.objectives.InfoVAE(), "batch_size": 10, "epochs": 2, "progress": False}
    result = pvae.fit(pair.model, pair.guide, data, **options)
    assert math.isfinite(result.history[-1]["valid_bound"])
    with pytest.raises(ValueError, match=r"cannot validate on the last batch, of 1: .* choose a batch_size"):
        pvae.fit(pair.model, pair.guide, DataSet("floats", train=data.train, valid=torch.randn(1, 4)), **options)


def test_a_loader_whose_last_batch_fails_says_so_in_one_line_and_keeps_the_weights():
    pair, reference, x = Normalised(), Normalised(), torch.randn(21, 4)
    with pytest.raises(
        ValueError, match=r"step 3: the pair cannot run on a batch of shape \(1, 4\).*drop_last"
    ) as error:
        pvae.fit(pair.model, pair.guide, DataLoader(x, batch_size=10), epochs=2, progress=False)
    assert "\n" not in str(error.value)
    assert "Trace Shapes" not in str(error.value)
    assert "the weights of step 2 are kept" in str(error.value)
    pvae.fit(reference.model, reference.guide, DataLoader(x, batch_size=10, drop_last=True), epochs=1, progress=False)
    assert torch.equal(weights_of(pair), weights_of(reference))
