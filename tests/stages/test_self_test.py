import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from geodistill.commands import distill as command
from geodistill.commands.distill import distill
from geodistill.config import Config, make_config
from geodistill.distilled import DistilledSet
from geodistill.errors import RunError
from geodistill.evaluation import bench
from geodistill.evaluation.workers import Job
from geodistill.evaluation.worth import SelfTest, Worth, advice
from geodistill.provenance import Made, Stage
from geodistill.run import Run, records
from geodistill.scenes import SceneData, Scenes
from geodistill.stages import self_test
from geodistill.stages.context import Context
from geodistill.stages.held_out import Apart, learned_from, set_apart
from geodistill.stages.self_test import adapts_base, read_self_test, run_self_test


def with_test(config: Config, held_out: float = 0.4, **more: Any) -> Config:
    return make_config({**config.model_dump(), "self_test": {"held_out": held_out}, **more})


@pytest.fixture
def small(on_pipeline: Config) -> Config:
    """Settings for `pair` under which about 24 of 60 scenes are held out."""
    return with_test(on_pipeline)


@pytest.fixture
def right(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many of the held-out scenes each training of two classes gets right, and how many there were so far."""
    told, labels = {"distilled": 20, "random": 10, "trained": 0}, torch.empty(0)
    complete = bench._complete_test

    def remembered(data: SceneData) -> Scenes:
        nonlocal labels
        labels = complete(data).labels
        return complete(data)

    def faked(jobs: Sequence[Job]) -> Iterator[tuple[int, Tensor]]:
        # They are asked for in this order.
        for index, (job, which) in enumerate(zip(jobs, ("distilled", "random"), strict=True)):
            told["trained"] += 1
            predicted = torch.where(torch.arange(len(job.test)) < told[which], labels, 1 - labels)
            yield index, torch.nn.functional.one_hot(predicted, 2).float()

    monkeypatch.setattr(bench, "_complete_test", remembered)
    monkeypatch.setattr(bench, "train_side_by_side", faked)
    return told


def a_set(scenes: Scenes) -> DistilledSet:
    rows = [int((scenes.labels == label).nonzero()[0, 0]) for label in range(len(scenes.classes)) for _ in range(2)]
    return DistilledSet(scenes.pixels(rows, size=32), scenes.labels[rows], scenes.classes, (), {"method": "dpd"})


def made_and_tested(folder: Path, scenes: Scenes, config: Config) -> SelfTest:
    """Return what the self-test says of a set of copies, in a run in `folder` that made nothing else."""
    apart = set_apart(scenes, config)
    with Run(folder, {}) as run:
        stage = Stage("distilled", 1)
        made = run.make(stage, lambda folder: a_set(scenes).write(folder), DistilledSet.load, given=[])
        return run_self_test(Context(apart.train, config, run), made, apart)


class TestSetApart:
    def test_a_share_of_every_class(self, small: Config, pair: Scenes) -> None:
        apart = set_apart(pair, small)
        assert apart.test is not None
        assert sorted(apart.train.keys + apart.test.keys) == sorted(pair.keys)
        assert torch.bincount(apart.train.labels).min() >= small.ipc
        assert 20 <= len(apart.test) <= 30
        assert apart.reason == ""

    def test_nothing_where_it_is_switched_off(self, on_pipeline: Config, pair: Scenes) -> None:
        assert set_apart(pair, on_pipeline) == Apart(pair)

    def test_at_most_about_two_thousand(self, small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        keys = [str(index) for index in range(600)]
        scenes = Scenes([Path()] * 600, torch.arange(600) % 10, tuple("abcdefghij"), keys, keys)
        monkeypatch.setattr("geodistill.stages.held_out.MOST", 60)
        apart = set_apart(scenes, small)
        assert apart.test is not None
        assert 40 <= len(apart.test) <= 80

    @pytest.mark.parametrize(
        ("changes", "held_out", "reason"),
        [
            ({"size": 16}, 0.4, "images of 16 px are too small for its network"),
            ({"ipc": 30}, 0.4, "class 'Beach' has 30 training images, IPC 30 leaves none to spare"),
            ({}, 0.01, "2 held-out scenes are too few, it needs 20"),
        ],
    )
    def test_reasons_against_it(
        self, on_pipeline: Config, pair: Scenes, changes: dict[str, Any], held_out: float, reason: str
    ) -> None:
        apart = set_apart(pair, with_test(on_pipeline, held_out, **changes))
        assert (apart.train, apart.test, apart.reason) == (pair, None, reason)

    def test_screening_keeps_the_images_that_it_needs(self, small: Config, pair: Scenes) -> None:
        few = pair.subset([*range(30), 30, 31, 32])
        assert torch.bincount(few.labels).tolist() == [30, 3]
        apart = set_apart(few, small.model_copy(update={"ipc": 2, "privacy": "screen"}))
        reason = f"class {pair.classes[1]!r} has 3 training images, screening leaves none to spare"
        assert (apart.train, apart.test, apart.reason) == (few, None, reason)

    def test_copies_of_one_image_cannot_be_held_out(self, small: Config, pair: Scenes) -> None:
        images = pair.pixels(size=32).permute(0, 2, 3, 1).numpy()
        images[30:] = images[30]
        apart = set_apart(Scenes.from_arrays(images, pair.labels, pair.classes), small)
        assert apart.reason == (
            f"class {pair.classes[1]!r} has 30 training images, and those to hold out are copies of others"
        )

    def test_a_run_s_record_tells_what_it_learned_from(self, small: Config, pair: Scenes) -> None:
        now = {"method": "dpd", "config": small.model_dump(mode="json")}
        assert learned_from(pair, now).keys == set_apart(pair, small).train.keys
        before = {"method": "dpd", "config": small.model_dump(mode="json", exclude={"self_test"})}
        assert learned_from(pair, before) is pair
        # `distill --method` holds scenes out for every method.
        assert learned_from(pair, now | {"method": "random"}).keys == learned_from(pair, now).keys


@pytest.mark.parametrize(
    ("worth", "verdict"),
    [
        (Worth(0.7, 0.6, 0.01, 0.2), "better than random"),
        (Worth(0.7, 0.6, 0.0, 0.2), "not distinguishable from random"),
        (Worth(0.6, 0.6, -0.1, 0.1), "not distinguishable from random"),
        (Worth(0.5, 0.6, -0.2, 0.0), "not distinguishable from random"),
        (Worth(0.5, 0.6, -0.2, -0.01), "below random"),
    ],
)
def test_the_verdict_follows_from_the_interval(worth: Worth, verdict: str) -> None:
    assert worth.verdict == verdict


def test_what_is_told() -> None:
    found = SelfTest(1600, 0, Worth(0.723, 0.641, 0.046, 0.117), Worth(0.66, 0.672, -0.05, 0.026))
    assert found.figures == [
        "after finetuning efficientnet-lite0: distilled set 72.3 %, random real images 64.1 %, difference +8.2 points "
        "(95 % interval over the scenes alone +4.6 to +11.7), on 1,600 held-out training scenes",
        "after logistic regression on its ImageNet features: distilled set 66.0 %, random real images 67.2 %, "
        "difference -1.2 points (95 % interval over the scenes alone -5.0 to +2.6)",
    ]
    assert found.conclusion == "self-test: the set is better than random real images"
    assert found.summary == (
        "Self-test: the set is better than random real images. After finetuning efficientnet-lite0: distilled set "
        "72.3 %, random real images 64.1 %, difference +8.2 points (95 % interval over the scenes alone +4.6 to "
        "+11.7), on 1,600 held-out training scenes. After logistic regression on its ImageNet features: distilled set "
        "66.0 %, random real images 67.2 %, difference -1.2 points (95 % interval over the scenes alone -5.0 to +2.6)."
    )
    known = SelfTest(600, 590, found.finetune, found.probe)
    assert known.figures[0].endswith("on 600 held-out training scenes (the base was trained on about 590 of them)")
    skipped = SelfTest(skipped="2 held-out scenes are too few, it needs 20")
    assert (skipped.verdict, skipped.figures) == (None, [])
    assert skipped.summary == "No self-test: 2 held-out scenes are too few, it needs 20."


def test_advice_goes_further_than_the_settings() -> None:
    assert advice(make_config({"ipc": 5, "finetune": {"steps": 1000}})) == (
        "try longer adaptation (--set finetune.steps=2000), more images (--ipc 10), another --base, or a base of your "
        "own by `geodistill pretrain`"
    )
    assert "--set finetune.steps=400" in advice(make_config({"finetune": {"steps": 0}}))
    assert advice(make_config({"ipc": 5}), adapts=False).startswith("try more images (--ipc 10), another --base")


@pytest.mark.parametrize(
    ("distilled", "random", "verdict", "level"),
    [
        (22, 4, "better than random", logging.INFO),
        (10, 10, "not distinguishable from random", logging.INFO),
        (4, 22, "below random", logging.WARNING),
    ],
)
def test_predictions_give_the_verdict(
    distilled: int,
    random: int,
    verdict: str,
    level: int,
    small: Config,
    pair: Scenes,
    right: dict[str, int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    right |= {"distilled": distilled, "random": random}
    with caplog.at_level(logging.INFO, "geodistill.self_test"):
        found = made_and_tested(tmp_path / "run", pair, small)
    apart = set_apart(pair, small)
    assert apart.test is not None
    count = len(apart.test)
    assert found.finetune is not None
    assert (found.verdict, found.held_out, found.seen) == (verdict, count, 0)
    assert (found.finetune.distilled, found.finetune.random) == pytest.approx((distilled / count, random / count))
    assert found.finetune.low <= found.finetune.difference <= found.finetune.high
    assert found.summary.startswith(f"Self-test: the set is {verdict} real images. After finetuning")
    (told,) = caplog.records
    tail = f" {advice(small, adapts=adapts_base(tmp_path / 'run', small))}" if verdict == "below random" else ""
    assert (told.levelno, told.getMessage()) == (level, found.summary + tail)


def test_it_is_a_stage_whose_verdict_is_on_the_card(
    small: Config, pair: Scenes, right: dict[str, int], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    found = made_and_tested(run, pair, small)
    assert read_self_test(run) == found
    assert [record["stage"] for record in records(run)] == ["distilled", "self_test"]
    kept = sorted(path.parent.name for path in (run / "self_test").glob("*/*.safetensors"))
    assert kept == ["finetune-efficientnet-lite0"] * 2 + ["probe-efficientnet-lite0"] * 2
    card = run / "distilled" / "README.md"
    text, when = card.read_text(), card.stat().st_mtime_ns
    assert f"\n\n## Self-test\n\n{found.summary}\n\n## Privacy\n\nWhat these images reveal" in text
    shared = (
        text + (run / "distilled" / "manifest.json").read_text() + (run / "self_test" / "self_test.json").read_text()
    )
    assert not [word for word in (*pair.names, *pair.keys) if word in shared]
    assert made_and_tested(run, pair, small) == found
    assert right["trained"] == 2
    assert (card.read_text(), card.stat().st_mtime_ns) == (text, when)


def test_it_goes_on_from_the_predictions_that_are_there(
    small: Config, pair: Scenes, right: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("geodistill.stages.self_test.compare_pair", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made_and_tested(tmp_path / "run", pair, small)
    assert right["trained"] == 2
    assert made_and_tested(tmp_path / "run", pair, small).verdict == "better than random"
    assert right["trained"] == 2


def test_one_that_is_not_possible_says_so_on_the_card(on_pipeline: Config, pair: Scenes, tmp_path: Path) -> None:
    found = made_and_tested(tmp_path / "run", pair, with_test(on_pipeline, 0.01))
    assert found == SelfTest(skipped="2 held-out scenes are too few, it needs 20")
    card = (tmp_path / "run" / "distilled" / "README.md").read_text()
    assert "## Self-test\n\nNo self-test: 2 held-out scenes are too few, it needs 20.\n\n## Privacy" in card


def test_damaged_result(tmp_path: Path) -> None:
    assert read_self_test(tmp_path) is None
    (tmp_path / "self_test").mkdir()
    path = tmp_path / "self_test" / "self_test.json"
    for damaged in ("", "[]", "{}", json.dumps({"finetune": {"oa": 1}, "probe": None})):
        path.write_text(damaged)
        with pytest.raises(RunError) as caught:
            read_self_test(tmp_path)
        assert str(caught.value) == (
            f"{path} is not the result of a self-test: delete {path.parent}, and the run's command makes it anew"
        )


class TestOfDistill:
    def test_nothing_held_out_is_learned_from(
        self, small: Config, pair: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[Scenes, Apart]] = []

        def made(name: str, context: Context) -> Made[DistilledSet]:
            seen.append((context.scenes, Apart(context.scenes)))
            return Made.source(a_set(context.scenes), name)

        def judged(context: Context, distilled: Made[DistilledSet], apart: Apart) -> None:
            seen.append((apart.train, apart))

        monkeypatch.setattr(command, "make_distilled", made)
        monkeypatch.setattr(command, "run_self_test", judged)
        distill(pair, small, out=tmp_path / "run")
        (learned, _), (_, apart) = seen
        assert apart.test is not None
        assert learned.keys == apart.train.keys
        assert not set(learned.keys) & set(apart.test.keys)

    def test_whole(
        self,
        on_pipeline: Config,
        pair: Scenes,
        right: dict[str, int],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # Enough are left for the teacher.
        monkeypatch.setattr("geodistill.stages.held_out.FEWEST", 4)
        run, small = tmp_path / "run", with_test(on_pipeline, 0.1)
        distill(pair, small, out=run)
        found = read_self_test(run)
        assert found is not None
        assert found.summary in (run / "distilled" / "README.md").read_text()
        bytes_before = {path: path.read_bytes() for path in run.glob("distilled/**/*") if path.is_file()}
        distill(pair, small, out=run)
        assert {path: path.read_bytes() for path in bytes_before} == bytes_before
        assert right["trained"] == 2

    def test_off(self, on_pipeline: Config, pair: Scenes, tmp_path: Path) -> None:
        run = tmp_path / "run"
        distill(pair, on_pipeline, out=run)
        assert read_self_test(run) is None
        assert not (run / "self_test").exists()
        assert "## Self-test" not in (run / "distilled" / "README.md").read_text()
        assert "self_test" not in json.loads((run / "run.json").read_text())["settings"]["config"]


def test_only_a_method_that_adapts_the_base_could_adapt_it_longer(small: Config, tmp_path: Path) -> None:
    some = make_config({"finetune": {"steps": 10}})
    assert not adapts_base(tmp_path, some)
    (tmp_path / "adapter").mkdir()
    assert adapts_base(tmp_path, some)


def test_random_real_images_are_of_the_scenes_that_are_learned_from(
    small: Config, pair: Scenes, right: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_from: list[Scenes] = []
    real = self_test.random_real
    monkeypatch.setattr(
        self_test, "random_real", lambda scenes, *rest: drawn_from.append(scenes) or real(scenes, *rest)
    )
    made_and_tested(tmp_path / "run", pair, small)
    apart = set_apart(pair, small)
    assert apart.test is not None
    assert {*drawn_from[0].keys} == {*apart.train.keys}
    assert not {*drawn_from[0].keys} & {*apart.test.keys}
