from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from geodistill.commands.distill import distill
from geodistill.config import Config, make_config
from geodistill.distilled import DistilledSet, tell_of_audit
from geodistill.errors import ConfigError, PrivacyError, SceneError
from geodistill.prior.base import source_of
from geodistill.privacy.accounting import Budget, Mechanism, epsilon_of
from geodistill.privacy.copies import are_copies, find_copies
from geodistill.privacy.overlap import FOOTPRINT, footprint
from geodistill.processes import Processes
from geodistill.provenance import Made
from geodistill.run import Run, records
from geodistill.scenes import Reading, Scenes, builtin_scenes
from geodistill.stages import private_means, private_training
from geodistill.stages.base import Source, train_base
from geodistill.stages.checks import check_counts
from geodistill.stages.private import PrivateContext, budget_of, check_private, guarantee
from geodistill.stages.private_drawing import noisy_slots
from geodistill.stages.private_means import Profiles, Starts

CANARY = 3


@pytest.fixture(scope="module")
def planted() -> Scenes:
    """Built-in scenes of two classes, 12 of each at 64 px; number CANARY is unlike anything else."""
    own = builtin_scenes(train_per_class=12, test_per_class=1, size=64).train
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
        "ipc": 12,
        "latents": {"views": 1},
        "teacher": {"steps": 60, "batch": 8, "width": 16, "held_out": 0.2},
        "finetune": {"steps": 8, "batch": 2, "warmup": 1, "consistency": 0.1},
        "sampling": {"steps": 4, "candidates": 1, "strength": 0.25, "guidance": 1},
        "refinement": {"steps": 2},
    }


def found_copies(distilled: DistilledSet, scenes: Scenes) -> set[int]:
    found = find_copies(distilled.images, scenes.pixels(size=64))
    return set(found.nearest[are_copies(found)].tolist())


def private_settings(settings: dict, **more: object) -> Config:
    return make_config({**settings, "privacy": "dp", "epsilon": 4.0, "delta": 1e-3, **more})


@pytest.mark.slow
def test_a_canary_is_found_without_privacy_and_not_with_it(planted: Scenes, settings: dict, tmp_path: Path) -> None:
    open_settings = make_config({**settings, "refinement": {"steps": 2, "students": []}})
    assert CANARY in found_copies(distill(planted, open_settings, out=tmp_path / "open"), planted)
    config = private_settings(settings)
    distilled = distill(planted, config, out=tmp_path / "private")
    assert distilled.images.shape == (24, 3, 64, 64)
    assert CANARY not in found_copies(distilled, planted)
    assert _facts(tmp_path / "private", "teacher") == {
        "steps": 7,
        "batch": 24,
        "noise": budget_of(24, config).noise["teacher"],
    }
    strengths = _facts(tmp_path / "private", "candidates")["strengths"]
    assert sum(strengths.values()) == 24
    assert min(map(float, strengths)) > 0.25  # clusters of two or so: their noise asks for more than was asked for
    again = distill(planted, config, out=tmp_path / "private")
    assert torch.equal(again.images, distilled.images)
    card = (tmp_path / "private" / "distilled" / "README.md").read_text(encoding="utf-8")
    assert (
        "Differentially private: ε = 4, δ = 0.001. Two archives are neighbours if one of their 24 images counts" in card
    )
    assert "What these images reveal" in card
    tell_of_audit(tmp_path / "private" / "distilled", "Audited: nothing found.")
    card = (tmp_path / "private" / "distilled" / "README.md").read_text(encoding="utf-8")
    assert "Differentially private: ε = 4" in card
    assert "Audited: nothing found." in card


def _facts(run: Path, stage: str) -> dict:
    (facts,) = [record["facts"] for record in records(run) if record["stage"] == stage]
    return facts


def test_the_budget_has_every_mechanism_and_is_spent(settings: dict) -> None:
    config = private_settings(settings)
    budget = budget_of(24, config)
    assert set(budget.noise) == {"profiles", "clusters", "starts", "teacher", "adapter", "moments"}
    mechanisms = [
        Mechanism("profiles", budget.noise["profiles"]),
        Mechanism("clusters", budget.noise["clusters"], steps=2),
        Mechanism("starts", budget.noise["starts"]),
        Mechanism("moments", budget.noise["moments"]),
        Mechanism("teacher", budget.noise["teacher"], rate=1.0, steps=7),
        Mechanism("adapter", budget.noise["adapter"], rate=16 / 24, steps=1),
    ]
    assert epsilon_of(mechanisms, 1.0, 1e-3) == pytest.approx(4.0, rel=1e-3)
    without = budget_of(24, private_settings({**settings, "finetune": {"steps": 0}}))
    assert "adapter" not in without.noise
    assert "teacher" not in without.noise  # nobody asks it
    inconsistent = budget_of(24, private_settings({**settings, "finetune": {"steps": 8, "batch": 2}}))
    assert set(inconsistent.noise) == {"profiles", "clusters", "starts", "adapter", "moments"}
    assert without.noise["starts"] < inconsistent.noise["starts"] < budget.noise["starts"]


def test_without_an_adapter_there_is_no_teacher(planted: Scenes, settings: dict, tmp_path: Path) -> None:
    distilled = distill(planted, private_settings({**settings, "finetune": {"steps": 0}}), out=tmp_path / "run")
    assert {record["stage"] for record in records(tmp_path / "run")}.isdisjoint({"teacher", "adapter"})
    assert distilled.records[0]["scores"] == {}


def test_without_starts_and_adapter_the_budget_is_for_profiles_and_moments(planted: Scenes, tmp_path: Path) -> None:
    few = {
        "ipc": 2,
        "sampling": {"steps": 4, "candidates": 2, "follow": "none"},
        "finetune": {"steps": 0},
        "refinement": {"steps": 2},
    }
    config = private_settings(few)
    budget = budget_of(24, config)
    assert set(budget.noise) == {"profiles", "moments"}
    assert budget.noise["profiles"] == 4 * budget.noise["moments"]
    distilled = distill(planted, config, out=tmp_path / "run")
    stages = {record["stage"] for record in records(tmp_path / "run")}
    assert stages == {"features", "profiles", "candidates", "chosen", "moments", "refined", "distilled"}
    assert distilled.images.shape == (4, 3, 64, 64)
    assert distilled.about["config"]["sampling"]["follow"] == "none"


def test_noise_differs_from_run_to_run_with_the_same_seed(
    planted: Scenes, settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = _profiles_of(torch.zeros(24, 1280), monkeypatch)
    config = private_settings(settings)
    budget = budget_of(24, config)

    def starts(folder: Path) -> Tensor:
        latents = Made.source(torch.ones(24, 1, 16, 8, 8), "latents")
        with Run(folder, {}) as run:
            context = PrivateContext(planted, config, run, budget=budget)
            return private_means.make_starts(context, latents, profiles).value.latents

    assert not torch.equal(starts(tmp_path / "one"), starts(tmp_path / "other"))


def _profiles_of(features: Tensor, monkeypatch: pytest.MonkeyPatch) -> Made[Profiles]:
    """Let the stages see `features` [N, 1280]; return profiles of two classes that are zero."""
    made, wide = Made.source(features, "features"), {"dtype": torch.float64}
    monkeypatch.setattr(private_means, "scene_features", lambda _: made)
    return Made(lambda: Profiles(torch.zeros(2, 1280, **wide), torch.zeros(2, 25, **wide)), ["profiles"], [made])


def test_images_of_a_class_follow_its_noisy_means_in_turn(planted: Scenes, settings: dict, tmp_path: Path) -> None:
    config = private_settings({**settings, "ipc": 5, "sampling": {"steps": 4, "candidates": 2}})
    means = Starts(torch.zeros(6, 16, 8, 8), torch.arange(6) / 10)  # three clusters in each of two classes
    with Run(tmp_path / "run", {}) as run:
        context = PrivateContext(planted, config, run, budget=budget_of(24, config))
        texts = Made.source(["a", "b"], "texts")
        slots = noisy_slots(context, Made.source(torch.empty(0), "prior"), texts, Made.source(means, "means")).value
    assert slots.texts == ["a"] * 5 + ["b"] * 5
    assert slots.starts is not None
    assert slots.starts.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 3, 3, 4, 4, 5, 5, 3, 3, 4, 4]
    assert slots.noisy is means.noisy


@pytest.mark.parametrize(("ipc", "clusters"), [(2, 2), (3, 3), (4, 3), (9, 3)])
def test_a_class_has_few_clusters_whatever_the_number_of_its_images(
    planted: Scenes, settings: dict, ipc: int, clusters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_means, "MOST_CENTRES", 3)
    profiles = _profiles_of(torch.randn(24, 1280), monkeypatch)
    config = private_settings({**settings, "ipc": ipc})
    with Run(tmp_path / "run", {}) as run:
        context = PrivateContext(planted, config, run, budget=budget_of(24, config))
        latents = Made.source(torch.ones(24, 1, 16, 8, 8), "latents")
        starts = private_means.make_starts(context, latents, profiles).value
    assert starts.latents.shape == (2 * clusters, 16, 8, 8)
    assert starts.noisy.shape == (2 * clusters,)


def test_more_images_than_clusters_make_a_set(planted: Scenes, settings: dict, tmp_path: Path) -> None:
    own = {**settings, "ipc": 11, "finetune": {"steps": 0}, "refinement": {"steps": 1}}
    distilled = distill(planted, private_settings(own), out=tmp_path / "run")
    assert distilled.labels.tolist() == [0] * 11 + [1] * 11
    assert len({image.numpy().tobytes() for image in distilled.images}) == 22


def test_a_base_that_was_trained_on_the_scenes_is_refused(planted: Scenes, settings: dict, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for path in Path(source_of("compact", 64)).iterdir():
        if path.name != FOOTPRINT:
            (folder / path.name).symlink_to(path)
    for archive, named in (("", ""), ("harbours", " (harbours)")):
        (folder / FOOTPRINT).write_text(footprint(planted.keys, archive), encoding="utf-8")
        with pytest.raises(PrivacyError) as caught:
            distill(planted, private_settings(settings, base=str(folder)), out=tmp_path / "run")
        assert str(caught.value) == (
            f"about 24 of the 24 images are among those that the base {str(folder)!r} was trained on{named}, and what "
            "it remembers of them no noise hides: give a --base that was trained on other data"
        )
    assert not (tmp_path / "run").exists()


def test_a_base_that_does_not_list_its_images_is_warned_of(
    planted: Scenes, settings: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    config = private_settings(settings, base=str(folder))
    for path in Path(source_of("compact", 64)).iterdir():
        if path.name != FOOTPRINT:
            (folder / path.name).symlink_to(path)
    check_private(planted, config)
    (told,) = caplog.messages
    assert told == (
        f"the base {str(folder)!r} does not list its training images: whether it was trained on these scenes cannot be "
        "checked, and the guarantee does not cover what it remembers of them"
    )


def test_a_base_built_in_a_run_on_the_scenes_is_refused(planted: Scenes, settings: dict, tmp_path: Path) -> None:
    tiny = {"steps": 1, "batch": 2, "channels": 4, "width": (32, 32)}
    with Run(tmp_path / "open", {}) as run:
        base = train_base([Source(planted)], make_config({**settings, "base": "scratch", "compact": tiny}), run).value
    with pytest.raises(PrivacyError, match=r"^about 24 of the 24 images are among those that the base"):
        distill(planted, private_settings(settings, base=str(base)), out=tmp_path / "run")


def test_several_processes_are_refused(
    planted: Scenes, settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geodistill.stages.private.processes", lambda: Processes(0, 2))
    told = r"^differential privacy is worked out for one process: start this without accelerate$"
    with pytest.raises(PrivacyError, match=told):
        distill(planted, private_settings(settings), out=tmp_path / "run")


def test_a_range_measured_on_the_scenes_is_refused(planted: Scenes, settings: dict, tmp_path: Path) -> None:
    given = Reading((1,), ((0.0, 9.0),))
    told = r"^the range of the values was measured on the training scenes, which no guarantee covers: give --scale"
    with pytest.raises(PrivacyError, match=told):
        distill(planted.read_by(replace(given, measured=True)), private_settings(settings), out=tmp_path / "run")
    check_private(planted.read_by(given), private_settings(settings))


def test_whether_a_class_has_enough_images_is_not_told(planted: Scenes, settings: dict) -> None:
    check_counts(planted, 13, private_settings(settings).privacy)
    with pytest.raises(SceneError, match="has 12 images, IPC 13 needs at least 13"):
        check_counts(planted, 13)


def test_the_card_says_how_surely_the_base_was_checked() -> None:
    budget = Budget(8.0, 1e-5, {}, 15.6)
    unlisted = "trained on, which cannot be checked, as it does not list its training images; "
    assert unlisted in guarantee(budget, 9, None)
    assert "a base that was trained on fewer than about 80 of the 6000 files" in guarantee(budget, 6000, 80)


@pytest.mark.parametrize(("epsilon", "told"), [(8.0, "8"), (10.04, "10.1"), (0.99951, "1"), (0.5001, "0.501")])
def test_epsilon_is_rounded_up(epsilon: float, told: str) -> None:
    assert f"ε = {told}, " in guarantee(Budget(epsilon, 1e-5, {}, 2 * epsilon), 24, None)


def test_delta_has_to_be_below_one_in_all_images(planted: Scenes, settings: dict, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match=r"^delta is 0.042, with 24 images it has to be below 0.042, or giving one"):
        distill(planted, private_settings(settings, delta=0.042), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0}, "setting 'epsilon': input should be greater than 0, got 0"),
        ({"epsilon": None}, "privacy 'dp' needs both: such as --epsilon 8 --delta 1e-5"),
        ({"privacy": "none"}, "epsilon and delta belong to privacy 'dp': add --privacy dp"),
        ({"base": "scratch"}, "privacy 'dp' does not go with this base: a base built from the scenes has seen them"),
        ({"soft_labels": True}, "privacy 'dp' does not go with this soft_labels: they come from a classifier trained"),
        ({"selection": {"by": "margin"}}, "privacy 'dp' does not go with this selection.by: 'herding' follows a noisy"),
        ({"sampling": {"follow": "guide"}}, "privacy 'dp' does not go with this sampling.follow: candidates are "),
        ({"sampling": {"follow": "base"}}, "privacy 'dp' does not go with this sampling.follow: candidates are "),
        ({"descriptions": {"describer": "template"}}, "this descriptions.describer: only what is 'measured' is a sum"),
    ],
)
def test_what_does_not_go_with_it_is_said(settings: dict, change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        private_settings(settings, **change)
    assert message in str(caught.value)


def test_the_teacher_gives_way_unless_it_is_asked_for(settings: dict) -> None:
    assert make_config({"ipc": 12}).finetune.consistency == 0.1
    without = private_settings({**settings, "finetune": {"rank": 2}})
    assert (without.finetune.consistency, without.finetune.rank) == (0, 2)
    assert private_settings(settings).finetune.consistency == 0.1


def test_refinement_is_shorter_unless_it_is_asked_for(settings: dict) -> None:
    assert private_settings({**settings, "refinement": {}}).refinement.steps == 240
    assert private_settings(settings, refinement={"lr": 0.01}).refinement.steps == 240
    assert private_settings(settings, refinement={"steps": 2}).refinement.steps == 2


def test_every_mechanism_of_a_run_has_its_own_noise(
    planted: Scenes, settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the budget counts is what is drawn: a mechanism without noise, or with another's, breaks the guarantee."""
    used: list[tuple[str, float]] = []

    def seeing(where: ModuleType, name: str) -> None:
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, **k: used.append((name, k["noise"])) or real(*a, **k))

    for name in ("noisy_means", "private_clusters", "noisy_moments"):
        seeing(private_means, name)
    seeing(private_training, "train_privately")
    config = private_settings(settings)
    distill(planted, config, out=tmp_path / "run")
    noise = budget_of(len(planted), config).noise
    assert sorted(used) == sorted(
        [
            ("noisy_means", noise["profiles"]),
            ("private_clusters", noise["clusters"]),
            ("noisy_means", noise["starts"]),
            ("train_privately", noise["teacher"]),
            ("train_privately", noise["adapter"]),
            ("noisy_moments", noise["moments"]),
        ]
    )
    assert min(value for _, value in used) > 0.1


def test_points_are_apart_from_the_noisy_means_of_their_classes() -> None:
    """The true means are not used: no noise covers them there."""
    features = torch.randn(6, 1280, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    means = torch.randn(2, 1280, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = private_means._points(features, labels, Profiles(means, torch.zeros(2, 25)))
    again = private_means._points(features - 1, labels, Profiles(means - 1, torch.zeros(2, 25)))
    torch.testing.assert_close(found, again, rtol=1e-4, atol=1e-5)
    other = private_means._points(features, labels, Profiles(means + 1, torch.zeros(2, 25)))
    assert float((found - other).abs().max()) > 0.1
    nothing = private_means._points(means[labels].float(), labels, Profiles(means, torch.zeros(2, 25)))
    assert float(nothing.abs().max()) < 1e-4
    assert float(found.abs().max()) > 1


def test_the_card_has_the_epsilon_of_both_neighbourhoods() -> None:
    told = guarantee(Budget(8.0, 1e-5, {}, 15.6), 24, None)
    assert "Differentially private: ε = 8, δ = 1e-05." in told
    assert "If one image is replaced by another, ε = 15.6 at the same δ." in told
