"""Model/guide pairs as Pyro users write them; nothing here knows of pvae.

`PAIRS` maps a name to a function that builds a pair with seeded weights, and a batch for it. Shapes are small:
pictures are 8 x 8, so 64 values wide.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import nn

WIDTH = 64


class Pair(NamedTuple):
    model: Callable[..., Any]
    guide: Callable[..., Any]
    batch: Any


def pictures(num, shape=(WIDTH,), seed=0):
    """Binary pictures (num, *shape): four prototypes with 5% of the pixels flipped."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = (torch.rand(4, *shape, generator=generator) < 0.4).float()
    x = prototypes[torch.randint(4, (num,), generator=generator)]
    flip = torch.rand(num, *shape, generator=generator) < 0.05
    return torch.where(flip, 1 - x, x)


def reals(num, width, seed=0):
    """Correlated reals (num, width)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, width, generator=generator)
    return noise + torch.randn(num, 1, generator=generator) + torch.linspace(-1, 1, width)


# --- the model and guide of Pyro's VAE tutorial


class Decoder(nn.Module):
    def __init__(self, z_dim, hidden_dim, x_dim):
        super().__init__()
        self.fc1 = nn.Linear(z_dim, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, x_dim)
        self.softplus = nn.Softplus()
        self.sigmoid = nn.Sigmoid()

    def forward(self, z):
        hidden = self.softplus(self.fc1(z))
        return self.sigmoid(self.fc21(hidden))


class Encoder(nn.Module):
    def __init__(self, z_dim, hidden_dim, x_dim):
        super().__init__()
        self.x_dim = x_dim
        self.fc1 = nn.Linear(x_dim, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, z_dim)
        self.fc22 = nn.Linear(hidden_dim, z_dim)
        self.softplus = nn.Softplus()

    def forward(self, x):
        x = x.reshape(-1, self.x_dim)
        hidden = self.softplus(self.fc1(x))
        z_loc = self.fc21(hidden)
        z_scale = torch.exp(self.fc22(hidden))
        return z_loc, z_scale


class TutorialVAE(nn.Module):
    def __init__(self, z_dim=5, hidden_dim=32, x_dim=WIDTH):
        super().__init__()
        self.encoder = Encoder(z_dim, hidden_dim, x_dim)
        self.decoder = Decoder(z_dim, hidden_dim, x_dim)
        self.z_dim, self.x_dim = z_dim, x_dim

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], self.z_dim)))
            z_scale = x.new_ones(torch.Size((x.shape[0], self.z_dim)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder.forward(z)
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x.reshape(-1, self.x_dim))
            return loc_img

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


def tutorial():
    torch.manual_seed(1)
    vae = TutorialVAE()
    return Pair(vae.model, vae.guide, pictures(12, (1, 8, 8)))


# --- plain functions that close over nets, with bare pyro.param statements


def closures():
    torch.manual_seed(2)
    decoder = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, WIDTH))
    encoder = nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, 6))

    def model(x):
        pyro.module("decoder", decoder)
        prior_scale = pyro.param("prior_scale", torch.ones(3), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), prior_scale).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        temperature = pyro.param("temperature", lambda: torch.tensor(0.5), constraint=constraints.interval(0.01, 2.0))
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, temperature * raw.exp()).to_event(1))

    model.decoder, guide.encoder = decoder, encoder
    return Pair(model, guide, pictures(12))


# --- nothing but bare pyro.param statements: x_d = weight_d z_d + loc_d + noise


def bare():
    def model(x):
        weight = pyro.param("weight", lambda: torch.linspace(0.5, 1.5, 4))
        loc = pyro.param("loc", torch.zeros(4))
        noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(weight * z + loc, noise).to_event(1), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.full((4,), 0.3))
        shift = pyro.param("shift", torch.zeros(4))
        spread = pyro.param("spread", torch.full((4,), 0.8), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x + shift, spread).to_event(1))

    return Pair(model, guide, reals(12, 4))


def exact(total=None, factor=1.0, kept=None):
    """A pair whose guide is the exact posterior and shares the model's parameters.

    It may stand in a plate that subsamples `total` data, under a scale `factor`, or under a mask `kept` over data.
    """

    def parameters():
        weight = pyro.param("weight", lambda: torch.linspace(0.5, 1.5, 4))
        loc = pyro.param("loc", torch.zeros(4))
        return weight, loc, pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)

    @contextmanager
    def surroundings(x):
        plate = pyro.plate("data", total, subsample_size=len(x)) if total else pyro.plate("data", len(x))
        with plate, poutine.scale(scale=factor), poutine.mask(mask=torch.tensor(True) if kept is None else kept):
            yield

    def model(x):
        weight, loc, noise = parameters()
        with surroundings(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(weight * z + loc, noise).to_event(1), obs=x)

    def guide(x):
        weight, loc, noise = parameters()
        precision = 1 + (weight / noise) ** 2
        with surroundings(x):
            mean = weight * (x - loc) / noise**2 / precision
            pyro.sample("z", dist.Normal(mean, precision.rsqrt()).to_event(1))

    return Pair(model, guide, reals(12, 4))


# --- PyroModule, with a constrained PyroParam


class Generator(PyroModule):
    def __init__(self, z_dim=3, x_dim=4):
        super().__init__("generator")
        self.linear = PyroModule[nn.Linear](z_dim, x_dim)
        self.noise = PyroParam(torch.tensor(0.7), constraint=constraints.positive)
        self.z_dim = z_dim

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.z_dim), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.linear(z), self.noise).to_event(1), obs=x)


class Recognizer(PyroModule):
    def __init__(self, z_dim=3, x_dim=4):
        super().__init__("recognizer")
        self.linear = PyroModule[nn.Linear](x_dim, z_dim)
        self.scale = PyroParam(torch.full((z_dim,), 0.5), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.linear(x), self.scale).to_event(1))


def pyro_modules():
    torch.manual_seed(3)
    return Pair(Generator(), Recognizer(), reals(12, 4))


# --- plates, scales and masks; all over the same nets


class Nets(nn.Module):
    def __init__(self, strict=False):
        super().__init__()
        torch.manual_seed(4)
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, WIDTH))
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 4))
        self.strict = strict

    def likelihood(self, z):
        assert z.dim() == 2 or not self.strict, "one batch dim only"
        return dist.Bernoulli(logits=self.decoder(z)).to_event(1)

    def posterior(self, x):
        loc, raw = self.encoder(x).chunk(2, -1)
        return dist.Normal(loc, raw.exp()).to_event(1)


PRIOR = dist.Normal(torch.zeros(2), 1.0).to_event(1)
TOTAL = 36


def plain(plate_name="data", strict=False):
    nets = Nets(strict)

    def model(x):
        pyro.module("nets", nets)
        with pyro.plate(plate_name, len(x)):
            z = pyro.sample("z", PRIOR)
            pyro.sample("x", nets.likelihood(z), obs=x)

    def guide(x):
        pyro.module("nets", nets)
        with pyro.plate(plate_name, len(x)):
            pyro.sample("z", nets.posterior(x))

    return Pair(model, guide, pictures(12))


def other_plate():
    return plain("batch")


def subsampling(strict=False):
    nets = Nets(strict)

    def model(x):
        pyro.module("nets", nets)
        with pyro.plate("data", TOTAL, subsample_size=len(x)):
            z = pyro.sample("z", PRIOR)
            pyro.sample("x", nets.likelihood(z), obs=x)

    def guide(x):
        pyro.module("nets", nets)
        with pyro.plate("data", TOTAL, subsample_size=len(x)):
            pyro.sample("z", nets.posterior(x))

    return Pair(model, guide, pictures(12))


def annealed(factor=0.1):
    """The KL annealing of Pyro's own examples: `poutine.scale` around the latent, in model and guide."""
    nets = Nets()

    def model(x):
        pyro.module("nets", nets)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=factor):
                z = pyro.sample("z", PRIOR)
            pyro.sample("x", nets.likelihood(z), obs=x)

    def guide(x):
        pyro.module("nets", nets)
        with pyro.plate("data", len(x)), poutine.scale(scale=factor):
            pyro.sample("z", nets.posterior(x))

    return Pair(model, guide, pictures(12))


def masked_data():
    """Every site leaves out each third datum, as for padding; the mask is made anew for each of them."""
    nets = Nets()

    def kept(x):
        return torch.arange(len(x)) % 3 > 0

    def model(x):
        pyro.module("nets", nets)
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=kept(x)):
                z = pyro.sample("z", PRIOR)
            with poutine.mask(mask=kept(x)):
                pyro.sample("x", nets.likelihood(z), obs=x)

    def guide(x):
        pyro.module("nets", nets)
        with pyro.plate("data", len(x)), poutine.mask(mask=kept(x)):
            pyro.sample("z", nets.posterior(x))

    return Pair(model, guide, pictures(12))


OBSERVED = torch.arange(WIDTH) % 4 > 0


def masked_pixels():
    """Each fourth pixel is missing, and `OBSERVED` leaves it out of the likelihood."""
    nets = Nets()

    def model(x):
        pyro.module("nets", nets)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", PRIOR)
            likelihood = dist.Bernoulli(logits=nets.decoder(z)).mask(OBSERVED).to_event(1)
            pyro.sample("x", likelihood, obs=x)

    def guide(x):
        pyro.module("nets", nets)
        with pyro.plate("data", len(x)):
            pyro.sample("z", nets.posterior(x))

    return Pair(model, guide, pictures(12))


def masked_pixel_plate():
    """The same missing pixels, with the pixels in a plate of their own and `poutine.mask` around them."""
    nets = Nets()

    def model(x):
        pyro.module("nets", nets)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", PRIOR)
            with pyro.plate("pixels", WIDTH, dim=-1), poutine.mask(mask=OBSERVED):
                pyro.sample("x", dist.Bernoulli(logits=nets.decoder(z).squeeze(-2)), obs=x)

    def guide(x):
        pyro.module("nets", nets)
        with pyro.plate("data", len(x), dim=-2):
            loc, raw = nets.encoder(x)[:, None].chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return Pair(model, guide, pictures(12))


# --- a convolutional pair whose reshapes know of one batch dim only


class ConvVAE(nn.Module):
    def __init__(self, channels=4, z_dim=3, p=0.2):
        super().__init__()
        self.channels, self.z_dim = channels, z_dim
        self.encoder = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout(p)
        )
        self.heads = nn.Linear(16 * channels, 2 * z_dim)
        self.widen = nn.Linear(z_dim, 16 * channels)
        self.decoder = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout(p), nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1)
        )

    def decode(self, z):
        return self.decoder(self.widen(z).view(-1, self.channels, 4, 4))

    def model(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.z_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(3), obs=x)

    def guide(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            loc, raw = self.heads(self.encoder(x).view(len(x), -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def convolutional():
    torch.manual_seed(5)
    vae = ConvVAE()
    return Pair(vae.model, vae.guide, pictures(12, (1, 8, 8)))


# --- two layers of latents


class Ladder(nn.Module):
    def __init__(self):
        super().__init__()
        self.prior1 = nn.Linear(2, 3)
        self.decoder = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, WIDTH))
        self.encoder1 = nn.Linear(WIDTH, 6)
        self.encoder2 = nn.Linear(3, 4)

    def model(self, x):
        pyro.module("ladder", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.prior1(z2), 0.5).to_event(1))
            pyro.deterministic("logits", self.decoder(z1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z1)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("ladder", self)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder1(x).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, raw.exp()).to_event(1))
            loc, raw = self.encoder2(z1).chunk(2, -1)
            pyro.sample("z2", dist.Normal(loc, raw.exp()).to_event(1))


def hierarchical():
    torch.manual_seed(6)
    ladder = Ladder()
    return Pair(ladder.model, ladder.guide, pictures(12))


# --- a plate inside the data plate: five readings per datum, each with a latent of its own


class Readings(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(2, 1)
        self.encode_z = nn.Linear(5, 4)
        self.encode_u = nn.Linear(1, 2)

    def model(self, x):
        pyro.module("readings", self)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("readings", 5, dim=-1):
                u = pyro.sample("u", dist.Normal(0.0, 0.5))
                pyro.sample("x", dist.Normal(self.loc(z)[..., 0] + u, 1.0), obs=x)

    def guide(self, x):
        pyro.module("readings", self)
        with pyro.plate("data", len(x), dim=-2):
            loc, raw = self.encode_z(x)[:, None].chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
            with pyro.plate("readings", 5, dim=-1):
                loc, raw = self.encode_u(x[..., None]).unbind(-1)
                pyro.sample("u", dist.Normal(loc, raw.exp()))


def nested_plate():
    torch.manual_seed(7)
    readings = Readings()
    return Pair(readings.model, readings.guide, reals(12, 5))


# --- a conditional pair: a batch is (x, c)


class Conditional(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2 + classes, 16), nn.Tanh(), nn.Linear(16, WIDTH))
        self.encoder = nn.Sequential(nn.Linear(WIDTH + classes, 16), nn.Tanh(), nn.Linear(16, 4))

    def model(self, x, c):
        pyro.module("conditional", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", PRIOR)
            # The classes have no particle dim, so the pair is run on copies of the batch.
            logits = self.decoder(torch.cat([z, c], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x, c):
        pyro.module("conditional", self)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(torch.cat([x, c], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def conditional():
    torch.manual_seed(8)
    pair = Conditional()
    classes = torch.eye(3)[torch.arange(12) % 3]
    return Pair(pair.model, pair.guide, (pictures(12), classes))


PAIRS: dict[str, Callable[[], Pair]] = {
    build.__name__: build
    for build in (
        tutorial,
        closures,
        bare,
        exact,
        pyro_modules,
        plain,
        other_plate,
        subsampling,
        annealed,
        masked_data,
        masked_pixels,
        masked_pixel_plate,
        convolutional,
        hierarchical,
        nested_plate,
        conditional,
    )
}


class BatchNormPair(nn.Module):
    """Linear nets with batch statistics: a pair with parameters, buffers and a mode to switch."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
            self.decoder = nn.Linear(2, 3)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))
