"""A pair in the style of Pyro's own VAE tutorial, trained by Pyro's SVI and by pvae, with no edit.

The class below knows nothing of pvae. What to see: `SVI` and `pvae.fit` reach the same bound, `pvae.fit` in less time,
and `pvae.log_marginal` takes the pair as it is. The figure shows digits above their reconstructions.

    python examples/own_pair.py [--smoke] [--out own_pair.png]
"""

import argparse
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torchvision.utils import save_image

import pvae


class VAE(nn.Module):
    """Bernoulli VAE over 64 pixels, as Pyro's tutorial writes it."""

    def __init__(self, z_dim: int = 6, hidden_dim: int = 200) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.encoder = nn.Sequential(nn.Linear(64, hidden_dim), nn.Softplus(), nn.Linear(hidden_dim, 2 * z_dim))
        self.decoder = nn.Sequential(nn.Linear(z_dim, hidden_dim), nn.Softplus(), nn.Linear(hidden_dim, 64))

    def model(self, x: Tensor) -> None:
        """p(latent) p(obs | latent) of a batch x (B, ...)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], self.z_dim)))
            z = pyro.sample("latent", dist.Normal(z_loc, torch.ones_like(z_loc)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.reshape(-1, 64))

    def guide(self, x: Tensor) -> None:
        """q(latent | obs)."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_log_scale = self.encoder(x.reshape(-1, 64)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(z_loc, z_log_scale.exp()).to_event(1))


def by_svi(vae: VAE, digits: pvae.data.DataSet, epochs: int) -> None:
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=pyro.infer.Trace_ELBO())
    for _ in range(epochs):
        for batch in digits.train[torch.randperm(len(digits.train))].split(100):
            svi.step(digits.observe(batch))
    pyro.clear_param_store()


def main(smoke: bool, out: Path) -> None:
    epochs = 2 if smoke else 100
    digits = pvae.data.load("digits", binarize="dynamic")
    ways = {"SVI": by_svi, "pvae.fit": lambda vae, data, n: pvae.fit(vae.model, vae.guide, data, epochs=n)}
    for name, train in ways.items():
        torch.manual_seed(0)
        vae = VAE()
        started = time.perf_counter()
        train(vae, digits, epochs)
        seconds = time.perf_counter() - started
        answer = pvae.log_marginal(
            vae.model, vae.guide, digits, pvae.estimators.ImportanceSampling(100 if smoke else 1000)
        )
        print(f"{name}: log p(x) {answer.mean:.2f} +- {answer.standard_error:.2f} nats, {seconds:.1f} s")
    shown = digits.observe(digits.test[:16], torch.Generator().manual_seed(0))
    rebuilt = pvae.reconstruct(vae.model, vae.guide, shown)["obs"].reshape(shown.shape)
    save_image(torch.cat([shown, rebuilt]).repeat_interleave(6, -1).repeat_interleave(6, -2), out, nrow=16)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("own_pair.png"))
    main(**vars(parser.parse_args()))
