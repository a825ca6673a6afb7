import re
import shutil
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from pytorchcv.models.densenet import densenet121
from pytorchcv.models.inceptionv3 import inceptionv3
from pytorchcv.models.vgg import vgg16

from geodistill.errors import ConfigError
from geodistill.networks import (
    NETWORKS,
    PRETRAINED,
    WITNESS,
    _any_size,
    _AvgPool2d,
    backbone_features,
    backbone_maps,
    build_network,
    check_network,
    compiled,
    embed,
    fold_norms,
    normalise,
    pooled_features,
    pretrained,
    restored,
)


def noise(count, size=32, seed=0, channels=3):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=random).to(torch.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_seeds_and_silence(name, capfd):
    before = torch.random.get_rng_state()
    with torch.no_grad():
        a, b, c = (build_network(name, 5, seed).eval()(normalise(noise(2))) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert a.shape == (2, 5)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels", [2, 7])
def test_other_numbers_of_channels(name, channels):
    with torch.no_grad():
        wide, rgb = (build_network(name, 5, 1, count).eval() for count in (channels, 3))
        images = noise(2, channels=channels)
        assert wide(normalise(images)).shape == (2, 5)
    ours, theirs = (
        next(one for one in network.modules() if isinstance(one, torch.nn.Conv2d)) for network in (wide, rgb)
    )
    for k in range(channels):
        assert torch.allclose(ours.weight[:, k], theirs.weight[:, k % 3] * 3 / channels)
    assert {name: value.shape for name, value in wide.state_dict().items() if value.shape != ours.weight.shape} == {
        name: value.shape for name, value in rgb.state_dict().items() if value.shape != theirs.weight.shape
    }


def test_weights_of_a_network_say_how_many_channels_it_takes():
    network = build_network(PRETRAINED, 5, 3, 4).eval()
    again = restored(network.state_dict(), 5)
    images = normalise(noise(2, channels=4))
    with torch.no_grad():
        assert torch.equal(network(images), again(images))
    assert backbone_features(noise(2, channels=4)).shape == (2, 1280)


@pytest.mark.parametrize("size", [32, 64])
def test_the_pretrained_network_computes_what_its_package_does(size):
    ours = build_network(PRETRAINED, 5, 0).eval()
    theirs = EfficientNet.from_name(PRETRAINED).eval()
    theirs._fc = torch.nn.Linear(1280, 5)
    theirs.load_state_dict(ours.state_dict())
    images = normalise(noise(3, size))
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (2, 6), (5, 4), (4, 7), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_is_torchs_bit_for_bit(rows, columns, dtype):
    random = torch.Generator().manual_seed(rows + columns)
    ours = torch.randn(2, 3, rows, columns, generator=random).to(dtype).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    a, b = _AvgPool2d()(ours), F.avg_pool2d(theirs, 2)
    gradient = torch.randn(a.shape, generator=random).to(dtype)
    a.backward(gradient)
    b.backward(gradient)
    assert torch.equal(a, b)
    assert torch.equal(ours.grad, theirs.grad)


def test_unknown_network_names_the_nearest():
    known = "efficientnet-lite0, efficientnet-lite2, resnet18, convnet3, mobilenetv2, vgg16, densenet121, inception_v3"
    known += ", timm:NAME"
    with pytest.raises(
        ConfigError, match=f"^unknown network 'resnet-18': did you mean 'resnet18'\\? known: {re.escape(known)}$"
    ):
        build_network("resnet-18", 5, 0)
    with pytest.raises(ConfigError, match=f"^unknown network 'zzz': known: {re.escape(known)}$"):
        check_network("zzz")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Counts that torchvision publishes, Inception's without the auxiliary head.
        ("resnet18", 11_689_512),
        ("mobilenetv2", 3_504_872),
        ("vgg16", 138_357_544),
        ("densenet121", 7_978_856),
        ("inception_v3", 23_834_568),
        # 28 · 128 + 2 · 128 · (9 · 128 + 1) + 3 · 256 of the blocks, 2,049 · 1,000 of the head
        ("convnet3", 3_584 + 295_168 + 768 + 2_049_000),
    ],
)
def test_numbers_of_parameters(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in NETWORKS[name](1000).parameters()) == parameters


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_a_few_steps_lower_the_loss(name):
    network = build_network(name, 2, 0).train()
    labels = torch.arange(8) % 2
    images = normalise(noise(8, 64) // 2 + labels[:, None, None, None].to(torch.uint8) * 128)  # dark and bright noise
    optimiser = torch.optim.SGD(network.parameters(), lr=0.003)
    losses = []
    for _ in range(3):
        torch.manual_seed(0)  # the same dropout each time
        loss = F.cross_entropy(network(images), labels)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("build", "side", "size"), [(vgg16, 7, 224), (densenet121, 1, 224), (inceptionv3, 1, 299)])
def test_nothing_changes_at_the_size_that_a_network_was_made_for(build, side, size):
    network, images = build(num_classes=2).eval(), normalise(noise(1, size)).contiguous()
    with torch.no_grad():
        before = network(images)
        assert torch.allclose(_any_size(network, side)(images), before, atol=1e-5)


def test_inception_enlarges_images_below_75_px_only():
    network = build_network("inception_v3", 2, 0).eval()
    small, large = normalise(noise(2, 64)), normalise(noise(2, 80))
    with torch.no_grad():
        enlarged = F.interpolate(small, size=(75, 75), mode="bilinear")
        assert torch.allclose(network(small), network.model(enlarged), atol=1e-5)
        assert torch.equal(network(large), network.model(large))


class OneSize(torch.nn.Module):
    """A network as timm makes them, which takes images of 48 px."""

    def __init__(self, classes, config):
        super().__init__()
        self.head = torch.nn.Linear(3, classes)
        self.pretrained_cfg = {"input_size": (3, 48, 48), **config}

    def forward(self, images):
        self.seen = images.shape[-1]
        return self.head(images.mean((2, 3)))


@pytest.mark.parametrize(
    ("config", "seen"),
    [({}, [32, 64]), ({"fixed_input_size": True}, [48, 48]), ({"min_input_size": (3, 40, 40)}, [40, 64])],
)
def test_timm_by_name(config, seen, monkeypatch):
    asked = []

    def create_model(name, *, pretrained, num_classes):
        asked.append((name, pretrained))
        return OneSize(num_classes, config)

    stub = SimpleNamespace(list_models=lambda: ["vit_tiny", "resnet10t"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", stub)
    network = build_network("timm:vit_tiny", 5, 1)
    same, other = (build_network("timm:vit_tiny", 5, seed) for seed in (1, 2))
    assert asked == [("vit_tiny", False)] * 3
    for size, side in zip((32, 64), seen, strict=True):
        assert network(normalise(noise(2, size))).shape == (2, 5)
        assert network.model.seen == side
    assert torch.equal(network.model.head.weight, same.model.head.weight)
    assert not torch.equal(network.model.head.weight, other.model.head.weight)
    message = "unknown network 'timm:vit_tine': did you mean 'timm:vit_tiny'? timm.list_models() has them all"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_network("timm:vit_tine")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ConfigError,
        match=r"^network 'timm:vit' needs timm, which cannot be imported \(.*\): pip install 'geodistill\[vision\]'$",
    ):
        check_network("timm:vit")


def test_features_have_norm_one_and_do_not_depend_on_the_batch():
    images = noise(5)
    features = backbone_features(images)
    assert features.shape == (5, 1280)
    assert torch.allclose(features.norm(dim=1), torch.ones(5))
    assert torch.allclose(features, backbone_features(images, batch=2), atol=1e-5)
    assert backbone_features(images[:0]).shape == (0, 1280)


def test_pooled_features_are_the_mean_of_the_packages_map():
    images = noise(3)
    theirs = EfficientNet.from_name(PRETRAINED).eval()
    theirs.load_state_dict(build_network(PRETRAINED, 1000, 0).state_dict())
    with torch.no_grad():
        expected = theirs.extract_features(normalise(images)).flatten(2).mean(2)
    assert torch.allclose(pooled_features(images), expected, atol=1e-4)
    assert torch.allclose(backbone_features(images), expected / expected.norm(dim=1, keepdim=True), atol=1e-5)
    signed = images.float() / 127.5 - 1
    *maps, last = backbone_maps(signed, last=True)
    assert torch.allclose(last.mean((2, 3)), expected, atol=1e-4)
    assert all(map(torch.equal, maps, backbone_maps(signed)))


@pytest.mark.skipif(
    not shutil.which("g++") or not Path(sysconfig.get_path("include"), "Python.h").is_file(),
    reason="torch.compile needs a C++ compiler and the headers of Python",
)
@pytest.mark.slow
def test_compiled_convnet3_has_the_same_logits_and_gradients():
    network = build_network("convnet3", 2, seed=0)
    batch = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = batch.contiguous(memory_format=torch.channels_last)
    off = torch.autocast("cpu", enabled=False)
    joined = compiled("convnet3", network, batch, off)
    assert joined is not network
    found = []
    for forward in (network, joined):
        logits = forward(batch)
        logits[:, 0].sum().backward()
        found.append([logits.detach(), *(weight.grad.clone() for weight in network.parameters())])
        network.zero_grad()
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["convnet3", "resnet18"])
def test_a_network_that_cannot_or_need_not_be_compiled_is_left_alone(name, monkeypatch):
    def without_compiler(_):
        if name == "resnet18":
            pytest.fail("its time does not go on norms")
        raise RuntimeError("no g++")

    monkeypatch.setattr(torch, "compile", without_compiler)
    network = build_network(name, 2, seed=0)
    off = torch.autocast("cpu", enabled=False)
    assert compiled(name, network, torch.zeros(2, 3, 32, 32), off) is network
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("side", [64, 128])
def test_folded_norms_leave_features_and_gradients_as_they_are(side: int) -> None:
    network = pretrained()
    folded = fold_norms(network)
    assert not [one for one in folded.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    gradients = []
    for one in (network, folded):
        own = images.clone().requires_grad_()
        embed(one, own)[:, :40].sum().backward()
        assert own.grad is not None
        gradients.append(own.grad)
    assert torch.allclose(embed(network, images), embed(folded, images), atol=1e-5)
    # A rounding can put a value on the other side of a ReLU6's kink.
    assert (gradients[0] - gradients[1]).norm() < 1e-2 * gradients[0].norm()
    assert [one for one in network.modules() if isinstance(one, torch.nn.BatchNorm2d)]


def test_the_second_pretrained_network_has_its_own_weights_and_takes_no_part_in_making_sets() -> None:
    network: Any = build_network(WITNESS, 5, 0)
    assert network._fc.out_features == 5
    again: Any = build_network(WITNESS, 5, 1)
    assert torch.equal(network._conv_stem.weight, again._conv_stem.weight)
    assert not torch.equal(network._fc.weight, again._fc.weight)
    assert network(normalise(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))).shape == (2, 5)
    sources = (Path(__file__).parents[1] / "src" / "geodistill").rglob("*.py")
    users = {path.name for path in sources if "WITNESS" in path.read_text()}
    # The audit looks at finished sets.
    assert users == {"networks.py", "copyprint.py"}
