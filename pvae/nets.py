"""Small networks that take any number of leading dims: particles, plates and data need no care."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pvae.support.glorot import glorot
from pvae.support.refusals import function, instance, number, one_line, shown, whole, widths

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "GatedMLP", "class_numbers", "init_output_bias", "one_hot"]

Shape = int | Sequence[int]


class MLP(nn.Module):
    """Fully connected net from (..., *in_shape) to (..., *out_shape), with Glorot's initial weights.

    Args:
        in_shape: features, or the shape of one datum, which is flattened.
        hidden: width of each hidden layer; empty for an affine map.
        out_shape: features, or a shape to unflatten to.
        activation: constructor of the nonlinearity after each hidden layer.

    Raises: ValueError if the input does not end with `in_shape`.
    """

    def __init__(
        self,
        in_shape: Shape,
        hidden: Sequence[int],
        out_shape: Shape,
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = _shape("in_shape", in_shape), _shape("out_shape", out_shape)
        sizes = [math.prod(self.in_shape), *widths("hidden", hidden)]
        function("activation", activation, usual="torch.nn.ReLU")
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(sizes):
            layers += [nn.Linear(width_in, width_out), _made_by(activation)]
        self.layers = glorot(nn.Sequential(*layers, nn.Linear(sizes[-1], math.prod(self.out_shape))))

    def forward(self, x: Tensor) -> Tensor:
        """(..., *in_shape) -> (..., *out_shape)."""
        return _unflatten(self.layers(_flatten(x, self.in_shape)), self.out_shape)


class GatedMLP(nn.Module):
    """Fully connected net of gated layers, h = (A x + a) * sigmoid(B x + b), from in_shape to out_shape.

    Dauphin et al. (2017); the hidden layers of Tomczak and Welling (2018).

    Raises: ValueError if the input does not end with `in_shape`.
    """

    def __init__(self, in_shape: Shape, hidden: Sequence[int], out_shape: Shape) -> None:
        super().__init__()
        self.in_shape, self.out_shape = _shape("in_shape", in_shape), _shape("out_shape", out_shape)
        sizes = [math.prod(self.in_shape), *widths("hidden", hidden)]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(sizes):
            layers += [nn.Linear(width_in, 2 * width_out), nn.GLU()]
        self.layers = glorot(nn.Sequential(*layers, nn.Linear(sizes[-1], math.prod(self.out_shape))))

    def forward(self, x: Tensor) -> Tensor:
        """(..., *in_shape) -> (..., *out_shape)."""
        return _unflatten(self.layers(_flatten(x, self.in_shape)), self.out_shape)


class ConvEncoder(nn.Module):
    """Strided convolutions, halving height and width per stage, then an affine map to `out_shape`.

    Args:
        in_shape: (C, H, W) of one image.
        channels: output channels of each 3 x 3, stride-2 stage.
        out_shape: features, or a shape to unflatten to.

    Raises: ValueError if `in_shape` is not (C, H, W), or the input does not end with it.
    """

    def __init__(self, in_shape: Sequence[int], channels: Sequence[int], out_shape: Shape) -> None:
        super().__init__()
        self.in_shape, self.out_shape = _image_shape("in_shape", in_shape), _shape("out_shape", out_shape)
        channels = widths("channels", channels, usual=(32, 64))
        sizes = _stages(self.in_shape, len(channels))
        depths = [self.in_shape[0], *channels]
        stages: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(depths):
            stages += [nn.Conv2d(width_in, width_out, 3, stride=2, padding=1), nn.ReLU()]
        features = depths[-1] * math.prod(sizes[-1])
        self.layers = nn.Sequential(*stages, nn.Flatten(), nn.Linear(features, math.prod(self.out_shape)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C, H, W) -> (..., *out_shape)."""
        _check_ends(x, self.in_shape)
        lead = x.shape[: x.dim() - 3]
        return self.layers(x.reshape(-1, *self.in_shape)).reshape(*lead, *self.out_shape)


class ConvDecoder(nn.Module):
    """The mirror of `ConvEncoder`: features (..., in_features) to images (..., *out_shape).

    Args:
        in_features: width of the latent vector.
        channels: channels of each stage, coarsest first.
        out_shape: (..., C, H, W) of the output; leading dims (the parameters of a likelihood) join the channels.

    Raises: ValueError if `out_shape` has fewer than 3 dims, or the input width is not `in_features`.
    """

    def __init__(self, in_features: int, channels: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_features = in_features = whole("in_features", in_features, usual=8)
        self.out_shape = shape = widths("out_shape", out_shape, usual=(1, 28, 28))
        channels = widths("channels", channels, usual=(64, 32))
        if not channels:
            raise ValueError("channels must name at least one stage, got none; try (64, 32)")
        image = _image_shape("out_shape", shape if len(shape) < 3 else (math.prod(shape[:-2]), *shape[-2:]))
        sizes = _stages(image, len(channels))
        coarse = (channels[0], *sizes[-1])
        stages: list[nn.Module] = [nn.Linear(in_features, math.prod(coarse)), nn.Unflatten(-1, coarse)]
        for stage, (width_in, width_out) in enumerate(itertools.pairwise([*channels, image[0]])):
            small, large = sizes[-1 - stage], sizes[-2 - stage]
            odd = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
            stages += [
                nn.ReLU(),
                nn.ConvTranspose2d(width_in, width_out, 3, stride=2, padding=1, output_padding=odd),
            ]
        self.layers = nn.Sequential(*stages)

    def forward(self, z: Tensor) -> Tensor:
        """(..., in_features) -> (..., *out_shape)."""
        _check_ends(z, (self.in_features,))
        lead = z.shape[:-1]
        return self.layers(z.reshape(-1, self.in_features)).reshape(*lead, *self.out_shape)


def one_hot(y: Tensor, num_classes: int) -> Tensor:
    """Classes y (...) as booleans (..., num_classes); unlike torch's own with no look at y, as tracing asks."""
    return y[..., None] == torch.arange(num_classes, device=y.device)


def class_numbers(labels: Tensor | None, x: Tensor) -> Tensor:
    """The classes of data x (B, ...), (B,), from numbers (B,) or one-hot rows (B, C): -1 for a missing label.

    A label is missing where its number is below 0, its row holds zeros alone, or there are no labels at all.
    """
    if labels is None:
        return x.new_full((len(x),), -1, dtype=torch.int64)
    return labels if labels.dim() == 1 else torch.where(labels.sum(-1) > 0, labels.argmax(-1), -1)


@torch.no_grad()
def init_output_bias(net: nn.Module, mean: Tensor, least: float = 1e-3) -> None:
    """Set the bias of the last affine layer so that a Bernoulli decoder starts at the data mean.

    bias = logit(clamp(mean, least, 1 - least)); worth several epochs on images (Burda et al. 2016). Where the
    layer has one bias per channel, the logit of the channel's mean is used.

    Args:
        net: a net whose last layer has a bias.
        mean: mean of the data, of the shape of one datum.
        least: how far from 0 and 1 the mean is kept.

    Raises: ValueError if the net has no such layer or its width does not fit the mean.
    """
    instance("net", net, nn.Module, what="a built module", usual="model.decoder")
    instance("mean", mean, Tensor, what="a tensor of the shape of one datum", usual="data.train.mean(0)")
    least = number("least", least, above=0, below=0.5, usual=1e-3)
    affine = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
    if not affine or affine[-1].bias is None:
        raise ValueError("the net has no last layer with a bias; give one that ends in an affine layer")
    bias = affine[-1].bias
    if not isinstance(affine[-1], nn.Linear) and mean.dim() == 3:
        mean = mean.mean((1, 2))
    if bias.numel() != mean.numel():
        raise ValueError(
            f"the last layer has {bias.numel()} outputs, the data mean {mean.numel()} values; "
            "the bias can start at the data mean only for a likelihood with one parameter per value"
        )
    if not bool(mean.isfinite().all()):
        raise ValueError(f"mean must be finite, got nan or inf in {shown(mean)}; give data.train.mean(0)")
    bias.copy_(mean.flatten().clamp(least, 1 - least).logit())


def _shape(name: str, shape: Shape) -> tuple[int, ...]:
    is_number = isinstance(shape, (numbers.Number, np.bool_))
    sizes = (whole(name, shape, usual=8),) if is_number else widths(name, shape, usual="8 or (1, 28, 28)")
    if not sizes:
        raise ValueError(f"{name} must have at least one dim, got (); try 1")
    return sizes


def _image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = widths(name, shape, usual=(1, 28, 28))
    if len(sizes) != 3:
        raise ValueError(f"a convolutional net takes images (C, H, W), got {name} {sizes}; use an MLP")
    return (sizes[0], sizes[1], sizes[2])


def _made_by(activation: Callable[[], nn.Module]) -> nn.Module:
    try:
        made = activation()
    except Exception as error:  # a function of the user's may fail in any way
        raise ValueError(
            f"activation is called with nothing, and {shown(activation)} fails then: {one_line(str(error), 80)}; "
            "give for example torch.nn.ReLU"
        ) from error
    return instance("what activation gives", made, nn.Module, what="a module", usual="torch.nn.ReLU")


def _stages(image: tuple[int, int, int], count: int) -> list[tuple[int, int]]:
    """Height and width before and after each stride-2 stage, finest first."""
    sizes = [(image[1], image[2])]
    for _ in range(count):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _check_ends(x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[x.dim() - len(shape) :]) != shape or x.dim() < len(shape):
        raise ValueError(
            f"expected data of shape (..., {', '.join(map(str, shape))}), got {tuple(x.shape)}; reshape them, or build "
            "the net (and the guide, for latents) for that shape"
        )


def _flatten(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    _check_ends(x, shape)
    return x if len(shape) == 1 else x.flatten(-len(shape))


def _unflatten(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x if len(shape) == 1 else x.unflatten(-1, shape)
