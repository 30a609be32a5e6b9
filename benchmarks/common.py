"""What the benchmarks share: the nets, the hand-written rival, the clockwork, tables and JSON."""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from pvae.guides import MeanField
from pvae.models import VAE
from pvae.nets import MLP, ConvDecoder, ConvEncoder

MIN_SCALE = 1e-4
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Net:
    """Sizes of a tanh VAE: data - hidden - latent - reversed hidden - data."""

    x_shape: tuple[int, ...]
    hidden: tuple[int, ...]
    latent_dim: int

    @property
    def x_dim(self) -> int:
        """Values per datum."""
        return math.prod(self.x_shape)

    def __str__(self) -> str:
        return "-".join(map(str, (self.x_dim, *self.hidden, self.latent_dim)))


@dataclass(frozen=True)
class ConvNet:
    """Sizes of a convolutional VAE: stages of stride 2, features, latent, and the stages mirrored."""

    x_shape: tuple[int, int, int]
    channels: tuple[int, ...]
    features: int
    latent_dim: int

    def __str__(self) -> str:
        return "conv " + "-".join(map(str, (*self.channels, self.features, self.latent_dim)))


BURDA = Net((1, 28, 28), (200, 200), 50)
SMALL = Net((1, 8, 8), (64,), 2)
CONV = ConvNet((1, 28, 28), (32, 64), 256, 16)


def pair(net: Net | ConvNet) -> tuple[VAE, MeanField]:
    """The pair that pvae trains, built as a user would build it."""
    x = torch.zeros(2, *net.x_shape)
    if isinstance(net, ConvNet):
        model = VAE(net.x_shape, net.latent_dim, decoder=ConvDecoder(net.latent_dim, net.channels[::-1], net.x_shape))
        encoder = ConvEncoder(net.x_shape, net.channels, net.features)
        return model, MeanField(model, x, encoder=encoder, min_scale=MIN_SCALE)
    model = VAE(net.x_shape, net.latent_dim, decoder=MLP(net.latent_dim, net.hidden[::-1], net.x_shape))
    return model, MeanField(model, x, hidden=net.hidden, min_scale=MIN_SCALE)


class PlainVAE(nn.Module):
    """The same model, guide and bound in plain torch, as one writes them by hand for speed.

    Data are flat, (B, x_dim), for a `Net`, and images for a `ConvNet`. The KL is the sampled one, which is what
    pvae's default objective uses, with the terms that cancel in log q(z | x) cancelled by hand; the analytic KL,
    softplus instead of the cross-entropy and exp instead of softplus were tried and are no faster.
    """

    def __init__(self, net: Net | ConvNet) -> None:
        super().__init__()
        self.latent_dim = net.latent_dim
        if isinstance(net, ConvNet):
            self.encoder = nn.Sequential(
                ConvEncoder(net.x_shape, net.channels, net.features), nn.Linear(net.features, 2 * net.latent_dim)
            )
            self.decoder = ConvDecoder(net.latent_dim, net.channels[::-1], net.x_shape)
        else:
            self.encoder = _mlp((net.x_dim, *net.hidden, 2 * net.latent_dim))
            self.decoder = _mlp((net.latent_dim, *net.hidden[::-1], net.x_dim))

    @torch.no_grad()
    def start_from(self, model: nn.Module, guide: nn.Module) -> None:
        """Take the weights of a pvae pair of the same sizes."""
        theirs = [*guide.parameters(), *model.parameters()]
        for own, other in zip(self.parameters(), theirs, strict=True):
            own.copy_(other)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loc and scale of q(z | x), each (B, latent_dim)."""
        loc, raw = self.encoder(x).chunk(2, -1)
        return loc, MIN_SCALE + softplus(raw)

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Minus the ELBO from one draw per datum, mean over the batch."""
        loc, scale = self.posterior(x)
        noise = torch.randn(loc.shape, generator=generator, device=x.device)
        z = loc + scale * noise
        reconstruction = binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = 0.5 * (z.square() - noise.square()).sum() - scale.log().sum()
        return (reconstruction + kl) / len(x)

    def iwae_loss(self, x: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Minus the importance-weighted bound from `num_samples` draws per datum, mean over the batch."""
        loc, scale = self.posterior(x)
        noise = torch.randn(num_samples, *loc.shape, generator=generator, device=x.device)
        weights = self.log_weights(x, loc + scale * noise, noise).logsumexp(0) + scale.log().sum(-1)
        return math.log(num_samples) - weights.mean()

    def log_weights(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """log p(x, z) - log q(z | x) without log scale, which is the same for all draws, (K, B)."""
        logits = self.decoder(z)
        cross_entropy = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        return 0.5 * (noise.square() - z.square()).sum(-1) - cross_entropy.sum(-1)

    @torch.no_grad()
    def log_marginal(
        self,
        x: Tensor,
        num_samples: int,
        generator: torch.Generator | None = None,
        log_weights: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """log 1/K sum_k p(x, z_k) / q(z_k | x) per datum, (N,); `log_weights` may be compiled.

        On a CPU chunks of 2,000 rows stay in the cache: 20 % faster than 10,000 rows, and as fast as any size tried.
        """
        values = []
        rows = 200_000 if x.is_cuda else 2000
        for batch in x.split(100):
            loc, scale = self.posterior(batch)
            chunk = max(1, rows // len(batch))
            weights = []
            for start in range(0, num_samples, chunk):
                shape = (min(chunk, num_samples - start), *loc.shape)
                noise = torch.randn(shape, generator=generator, device=x.device)
                weights.append((log_weights or self.log_weights)(batch, loc + scale * noise, noise))
            log_mean = torch.cat(weights).logsumexp(0) - math.log(num_samples)
            values.append(log_mean + scale.log().sum(-1))
        return torch.cat(values)


def devices() -> list[str]:
    """The CPU, and a GPU where there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def clock(device: str = "cpu") -> float:
    """Seconds, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def fused_adam(parameters: Sequence[Tensor], lr: float = 1e-3) -> torch.optim.Adam:
    """What pvae uses by default, for the rivals too."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def shuffled(x: Tensor, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """One epoch of batches in a fresh order, from a tensor that lives on the device, where the generator does, too."""
    for rows in torch.randperm(len(x), generator=generator, device=x.device).split(batch_size):
        yield x.index_select(0, rows)


def interleaved(contestants: Mapping[str, Callable[[], float]], blocks: int) -> dict[str, list[float]]:
    """Run every contestant `blocks` times by turns, so that a busy neighbour hits all alike; what each returned.

    The order rotates, so that nobody always runs behind the same other; garbage is collected before each turn,
    so that nobody pays for another's.
    """
    names = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in names}
    # What torch's modules hold is never garbage, and takes longer to search than a short turn takes to run.
    gc.freeze()
    for block in range(blocks):
        first = block % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            times[name].append(contestants[name]())
    gc.unfreeze()
    return times


def paired_ratio(times: Sequence[float], baseline: Sequence[float]) -> float:
    """Median over turns of the ratio within a turn."""
    return statistics.median(own / other for own, other in zip(times, baseline, strict=True))


def summed_up(case: str, unit: str, times: Mapping[str, Sequence[float]], baselines: Sequence[str]) -> Rows:
    """One row per contestant: median and quartiles over turns, and the paired ratio to each baseline there is."""
    rows: Rows = []
    for contestant, values in times.items():
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        rows.append(
            {
                "case": case,
                "contestant": contestant,
                "value": median,
                "lower_quartile": lower,
                "upper_quartile": upper,
                "unit": unit,
                "turns": len(values),
                "ratios": {name: paired_ratio(values, times[name]) for name in baselines if name in times},
            }
        )
    return rows


def one(case: str, contestant: str, value: float, unit: str, **ratios: float) -> dict[str, Any]:
    """A row of a single figure."""
    return {"case": case, "contestant": contestant, "value": value, "unit": unit, "ratios": ratios}


COLUMNS = ("case", "contestant", "median", "quartiles", "ratios")


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row as text, under `COLUMNS`."""
    quartiles = f"{row['lower_quartile']:.3g} to {row['upper_quartile']:.3g}" if "turns" in row else ""
    ratios = "\n".join(f"{ratio:.2f}x {name}" for name, ratio in row["ratios"].items() if name != row["contestant"])
    return row["case"], row["contestant"], f"{row['value']:.3g} {row['unit']}", quartiles, ratios


def run_alone(benchmark: str, description: str | None, measure: Callable[[bool], Rows]) -> None:
    """What every script does when it is called by itself."""
    options = arguments(description).parse_args()
    rows = measure(options.smoke)
    show(benchmark.replace("_", " "), COLUMNS, [cells(row) for row in rows])
    write_json(options.json, benchmark, rows, smoke=options.smoke)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every script takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run, the times mean nothing")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows to this file, too")
    return parser


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """Add `--data-root`, which PVAE_DATA_ROOT stands in for."""
    root = os.environ.get("PVAE_DATA_ROOT") or None
    parser.add_argument(
        "--data-root", type=Path, default=root, metavar="PATH", help="folder that holds MNIST/raw (or PVAE_DATA_ROOT)"
    )


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
    }


def write_json(path: Path | None, benchmark: str, rows: Rows, **more: Any) -> None:
    """Write the rows of a benchmark where `--json` asked for them; a figure that is not finite is an error."""
    if path is not None:
        record = {"benchmark": benchmark, "machine": machine(), **more, "rows": rows}
        path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def show(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print one table: the first column names, the others hold figures."""
    about = machine()
    caption = [*notes, f"{about['processor']}, {about['threads']} threads, torch {about['torch']}"]
    table = Table(title=title, caption="\n".join(caption), title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for line in lines:
        table.add_row(*line)
    Console(width=None if os.isatty(1) else 160).print(table)


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _processor() -> str:
    # Linux gives platform.processor() no model name.
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
