"""The same net in pythae (`pip install '.[bench]'`), at its best settings; its rows are left out where it is absent."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
from typing import Any

import torch
from common import Net, PlainVAE
from torch import Tensor, nn

__all__ = ["is_installed", "model_of", "seconds_per_step"]


def is_installed() -> bool:
    """Whether pythae can be imported."""
    return importlib.util.find_spec("pythae") is not None


def model_of(net: Net, plain: PlainVAE) -> Any:
    """pythae's VAE over the nets of a hand-written one; its scale is exp(raw / 2), its KL analytic."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain.encoder

        def forward(self, x: Tensor) -> Any:
            loc, raw = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=raw)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(plain.decoder, nn.Sigmoid())

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z))

    config = VAEConfig(input_dim=(net.x_dim,), latent_dim=net.latent_dim, reconstruction_loss="bce")
    return VAE(config, Encoder(), Decoder())


def seconds_per_step(net: Net, x: Tensor, batch_size: int, epochs: int) -> float:
    """Seconds per step of pythae's trainer over flat data, its first epoch aside: fused Adam, no callback, no file."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import CallbackHandler

    logging.getLogger("pythae").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            learning_rate=1e-3,
            optimizer_params={"fused": True},
        )
        model = model_of(net, PlainVAE(net))
        trainer = BaseTrainer(model, BaseDataset(x, torch.zeros(len(x))), training_config=config)
        trainer.prepare_training()
        trainer.callback_handler = CallbackHandler([], model)
        started = 0.0
        for epoch in range(epochs):
            if epoch == 1:
                started = time.perf_counter()
            trainer.train_step(epoch)
        return (time.perf_counter() - started) / ((epochs - 1) * len(trainer.train_loader))
