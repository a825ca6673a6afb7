from pathlib import Path

import pytest
import torch
from torch import Tensor

from geodistill.config import Config, make_config
from geodistill.distilled import DistilledSet, tell_of_audit
from geodistill.errors import ConfigError, PrivacyError
from geodistill.methods import private
from geodistill.methods.dpd import distill
from geodistill.methods.private import budget_of
from geodistill.prior.base import shipped_base
from geodistill.privacy.accounting import Mechanism, epsilon_of
from geodistill.privacy.copies import are_copies, find_copies
from geodistill.privacy.overlap import FOOTPRINT, footprint
from geodistill.run import records
from geodistill.scenes import Scenes, builtin_scenes

CANARY = 3


@pytest.fixture(scope="module")
def planted() -> Scenes:
    """Built-in scenes of two classes, 24 of each at 64 px; number CANARY is unlike anything else."""
    own = builtin_scenes(train_per_class=24, test_per_class=1, size=64).train
    two = own.subset((own.labels < 2).nonzero()[:, 0])
    pixels = two.pixels(size=64)
    blobs = torch.nn.functional.interpolate(
        torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(5)), size=64, mode="bicubic"
    )
    pixels[CANARY] = (blobs[0].clamp(0, 1) * 255).to(torch.uint8)
    arrays = pixels.permute(0, 2, 3, 1).numpy()
    return Scenes.from_arrays(list(arrays), two.labels.tolist(), two.classes[:2])


@pytest.fixture(scope="module")
def settings() -> dict:
    """Every image of a cluster is followed closely: what a careless user might ask for."""
    return {
        "ipc": 24,
        "latents": {"views": 1},
        "teacher": {"steps": 60, "batch": 8, "width": 16, "held_out": 0.2},
        "finetune": {"steps": 8, "batch": 2, "warmup": 1},
        "sampling": {"steps": 5, "candidates": 1, "strength": 0.2, "guidance": 1},
    }


def found_copies(distilled: DistilledSet, scenes: Scenes) -> set[int]:
    found = find_copies(distilled.images, scenes.pixels(size=64))
    return set(found.nearest[are_copies(found)].tolist())


def private_settings(settings: dict, **more: object) -> Config:
    return make_config({**settings, "privacy": "dp", "epsilon": 4.0, "delta": 1e-3, **more})


def test_a_canary_is_found_without_privacy_and_not_with_it(planted: Scenes, settings: dict, tmp_path: Path) -> None:
    assert CANARY in found_copies(distill(planted, make_config(settings), out=tmp_path / "open"), planted)
    config = private_settings(settings)
    distilled = distill(planted, config, out=tmp_path / "private")
    assert distilled.images.shape == (48, 3, 64, 64)
    assert CANARY not in found_copies(distilled, planted)
    assert _facts(tmp_path / "private", "teacher") == {
        "steps": 7,
        "batch": 48,
        "noise": budget_of(48, config).noise["teacher"],
    }
    strengths = _facts(tmp_path / "private", "candidates")["strengths"]
    assert sum(strengths.values()) == 48
    assert min(map(float, strengths)) > 0.2  # clusters of two or so: their noise asks for more than was asked for
    again = distill(planted, config, out=tmp_path / "private")
    assert torch.equal(again.images, distilled.images)
    card = (tmp_path / "private" / "distilled" / "README.md").read_text(encoding="utf-8")
    assert "Differentially private: ε = 4, δ = 0.001, the unit being one image in or out of the 48." in card
    assert "No audit was made" in card
    tell_of_audit(tmp_path / "private" / "distilled", "Audited: nothing found.")
    card = (tmp_path / "private" / "distilled" / "README.md").read_text(encoding="utf-8")
    assert "Differentially private: ε = 4" in card
    assert "Audited: nothing found." in card


def _facts(run: Path, stage: str) -> dict:
    (facts,) = [record["facts"] for record in records(run) if record["stage"] == stage]
    return facts


def test_the_budget_has_every_mechanism_and_is_spent(settings: dict) -> None:
    config = private_settings(settings)
    budget = budget_of(48, config)
    assert set(budget.noise) == {"profiles", "clusters", "starts", "teacher", "adapter"}
    mechanisms = [
        Mechanism("profiles", budget.noise["profiles"]),
        Mechanism("clusters", budget.noise["clusters"], steps=2),
        Mechanism("starts", budget.noise["starts"]),
        Mechanism("teacher", budget.noise["teacher"], rate=1.0, steps=7),
        Mechanism("adapter", budget.noise["adapter"], rate=16 / 48, steps=1),
    ]
    assert epsilon_of(mechanisms, 1.0, 1e-3) == pytest.approx(4.0, rel=1e-3)
    without = budget_of(48, private_settings({**settings, "finetune": {"steps": 0}}))
    assert "adapter" not in without.noise
    assert without.noise["starts"] < budget.noise["starts"]


def test_noise_differs_from_run_to_run_with_the_same_seed(
    planted: Scenes, settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[Tensor]()

    def stop(latents: Tensor, *_: object) -> Tensor:
        drawn.append(latents)
        raise KeyboardInterrupt

    monkeypatch.setattr(private, "_teach", lambda *_: stop(private_latents(tmp_path / f"run-{len(drawn)}")))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distill(planted, private_settings(settings), out=tmp_path / f"run-{len(drawn)}")
    assert not torch.equal(*drawn)


def private_latents(run: Path) -> Tensor:
    from safetensors.torch import load_file

    return load_file(run / "centres" / "centres.safetensors")["latents"]


def test_a_base_that_was_trained_on_the_scenes_is_refused(planted: Scenes, settings: dict, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for path in shipped_base(64).iterdir():
        if path.name != FOOTPRINT:
            (folder / path.name).symlink_to(path)
    (folder / FOOTPRINT).write_text(footprint(planted.keys), encoding="utf-8")
    told = (
        rf"^about 48 of the 48 images are among those that the base '{folder}' was trained on, and what it remembers "
        r"of them no noise hides: give a --base that was trained on other data$"
    )
    with pytest.raises(PrivacyError, match=told):
        distill(planted, private_settings(settings, base=str(folder)), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_delta_has_to_be_below_one_in_all_images(planted: Scenes, settings: dict, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match=r"^delta is 0.0209, with 48 images it has to be below 0.021, or giving one"):
        distill(planted, private_settings(settings, delta=0.0209), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0}, "setting 'epsilon': input should be greater than 0, got 0"),
        ({"epsilon": None}, "privacy 'dp' needs both: such as --epsilon 8 --delta 1e-5"),
        ({"privacy": "none"}, "epsilon and delta belong to privacy 'dp': add --privacy dp"),
        ({"base": "scratch"}, "privacy 'dp' does not go with this base: a base built from the scenes has seen them"),
        ({"soft_labels": True}, "privacy 'dp' does not go with this soft_labels: they come from a classifier trained"),
        ({"selection": {"by": "margin"}}, "privacy 'dp' does not go with this selection.by: 'herding' follows a noisy"),
        ({"sampling": {"follow": "guide"}}, "privacy 'dp' does not go with this sampling.follow: candidates 'start'"),
        ({"descriptions": {"describer": "template"}}, "this descriptions.describer: only what is 'measured' is a sum"),
    ],
)
def test_what_does_not_go_with_it_is_said(settings: dict, change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        private_settings(settings, **change)
    assert message in str(caught.value)
