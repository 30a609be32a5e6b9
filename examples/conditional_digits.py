"""Digits on demand: a conditional VAE draws the digit asked for, and a classifier that never saw it says how often.

Both learn from the same batches (x, label) by the same `fit`: the conditional VAE log p(x | label) by its ELBO, the
classifier log p(label | x) itself, as nothing in it is latent. What to see: each row of the figure is one digit, in
many hands, and the classifier, trained on real digits alone, reads nearly all of them as what was asked for.

MNIST (58,000 digits, binarised at each step), 6 latents, 15 epochs (the classifier 5), 1.3 minutes of one core: the
classifier reads 98.2 % of 10,000 real test digits right and has log p(label | x) = -0.0569 nats, exactly. The
conditional VAE has log p(x | label) = -104.05 +- 1.13 nats (1,000 test digits, K = 1000). Of 2,000 generated digits
95.0 +- 0.5 % are read as what was asked for, of the means of their pixels 97.9 +- 0.3 %. More latents raise log p and
lower that share: 20 of them, for 50 epochs, had -87.99 nats, 90.5 % and 92.8 %, for their prior has places where no
digit of that label was ever encoded.

    python examples/conditional_digits.py [--data-root FOLDER_OF_MNIST] [--smoke] [--out conditional_digits.png]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import pvae
from pvae.guides import Empty, MeanField
from pvae.models import ConditionalVAE, NeuralClassifier
from pvae.nets import ConvEncoder, init_output_bias


def main(smoke: bool, data_root: Path | None, out: Path) -> None:
    epochs, num_each, num_test = (1, 20, 20) if smoke else (15, 200, 1000)
    name = "digits" if data_root is None else "mnist"
    data = pvae.data.load(name, root=data_root, binarize="dynamic").with_labels()
    x, labels = data.parts("test")
    test = data.observe(x, torch.Generator().manual_seed(0)), labels

    torch.manual_seed(0)
    judge = NeuralClassifier(data.shape, 10, net=ConvEncoder(data.shape, (16, 32), 10))
    empty = Empty(judge, data.example())
    pvae.fit(judge, empty, data, epochs=max(1, epochs // 3), lr=2e-3, schedule="cosine")
    print(f"classifier: {share_right(judge, *test):.1%} of {len(x)} real test digits are read right")
    print(f"log p(label | x) of them: {pvae.log_marginal(judge, empty, test).mean:.4f} nats, exactly")

    model = ConditionalVAE(data.shape, 6, 10)
    init_output_bias(model.decoder, data.train.mean(0))
    guide = MeanField(model, data.example())
    pvae.fit(model, guide, data, epochs=epochs, lr=2e-3, schedule="cosine")
    answer = pvae.log_marginal(model, guide, tuple(part[:num_test] for part in test))
    print(f"log p(x | label), K = 1000: {answer.mean:.2f} +- {answer.standard_error:.2f} nats per digit")

    asked = torch.eye(10).repeat_interleave(num_each, 0)
    like = torch.zeros(len(asked), *data.shape), asked
    for what, mean in (("draws", False), ("means of the pixels", True)):
        images = pvae.sample(model, len(asked), like=like, mean=mean)["x"]
        right = share_right(judge, images, asked)
        error = (right * (1 - right) / len(asked)) ** 0.5
        print(f"generated, {what}: {right:.1%} +- {error:.1%} of {len(asked)} are read as the digit asked for")
    show(images.reshape(10, num_each, *data.shape)[:, :15], out)
    print(f"wrote {out}")


def share_right(judge: NeuralClassifier, x: Tensor, labels: Tensor) -> float:
    return (judge.predict(x).argmax(-1) == labels.argmax(-1)).double().mean().item()


def show(images: Tensor, out: Path) -> None:
    """Images (10, n, 1, H, W), a row per digit."""
    picture = images[:, :, 0].permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.imshow(picture, cmap="gray_r", interpolation="nearest")
    height = images.shape[-2]
    axes.set(ylabel="label asked for", xticks=[], yticks=[height * (digit + 0.5) for digit in range(10)])
    axes.set_yticklabels(range(10))
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--data-root", type=Path, help="folder of MNIST; without it, scikit-learn's digits")
    parser.add_argument("--out", type=Path, default=Path("conditional_digits.png"))
    main(**vars(parser.parse_args()))
