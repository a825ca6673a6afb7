"""Small classifiers for the tests of deployment: random weights, built and exported once."""

from pathlib import Path

import torch

from geodistill.evaluation.classifier import About, Classifier
from geodistill.networks import build_network

CLASSES = ("Beach", "Forest", "River")
SIDE = 32


def classifier(network: str = "convnet3", size: int = SIDE) -> Classifier:
    """Return a network of random weights, whose batch norms have seen some images."""
    model = build_network(network, len(CLASSES), 0)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, size, size))
    return Classifier(model.eval(), About(network, "scratch", CLASSES, size, licence="CC0"))


def saved(folder: Path, network: str = "convnet3") -> Path:
    """Save a `classifier` in `folder`."""
    classifier(network).save(folder)
    return folder


def images(count: int, size: int = SIDE) -> torch.Tensor:
    """Return random uint8 images [count, 3, size, size]."""
    random = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random)
