import re

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from geodistill.errors import ConfigError
from geodistill.evaluation.networks import NETWORKS, PRETRAINED, backbone_features, build_network, normalise


def noise(count, size=32, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=random).to(torch.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_seeds_and_silence(name, capfd):
    before = torch.random.get_rng_state()
    one, same, other = (build_network(name, 5, seed).eval() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        a, b, c = (network(normalise(noise(2))) for network in (one, same, other))
    assert a.shape == (2, 5)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("size", [32, 64])
def test_the_pretrained_network_computes_what_its_package_does(size):
    ours = build_network(PRETRAINED, 5, 0).eval()
    theirs = EfficientNet.from_name(PRETRAINED).eval()
    theirs._fc = torch.nn.Linear(1280, 5)
    theirs.load_state_dict(ours.state_dict())
    images = normalise(noise(3, size))
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-4)


def test_unknown_network_names_the_nearest():
    message = "unknown network 'resnet-18': did you mean 'resnet18'? known: efficientnet-lite0, resnet18, convnet3"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build_network("resnet-18", 5, 0)


def test_features_have_norm_one_and_do_not_depend_on_the_batch():
    images = noise(5)
    features = backbone_features(images)
    assert features.shape == (5, 1280)
    assert torch.allclose(features.norm(dim=1), torch.ones(5))
    assert torch.allclose(features, backbone_features(images, batch=2), atol=1e-5)
    assert backbone_features(images[:0]).shape == (0, 1280)
