import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module, metadata
from pathlib import Path

import pytest
import torch

from geodistill import methods
from geodistill.commands.distill import distill
from geodistill.config import Config
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError, SceneError
from geodistill.methods import METHODS, dm, make_distilled
from geodistill.provenance import Method
from geodistill.run import Run
from geodistill.scenes import Scenes
from geodistill.stages.context import Context


def _made(name: str, scenes: Scenes, config: Config, out: Path) -> DistilledSet:
    with Run(out, {"method": name}) as run:
        return make_distilled(name, Context(scenes, config, run)).value


def _are_real(images: torch.Tensor, scenes: Scenes) -> list[bool]:
    real = {image.numpy().tobytes() for image in scenes.pixels(size=32)}
    return [image.numpy().tobytes() in real for image in images]


def test_methods_in_order() -> None:
    order = "random herding kcenter kmeans reconstruction template d4m minimax mgd3 dm dpd"
    assert list(METHODS) == order.split()
    assert [method.name for method in METHODS.values()] == order.split()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_ipc_images_of_each_class(
    name: str, pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dm, "STEPS", 2)
    made = _made(name, pair, on_pipeline, tmp_path)
    assert made.about["method"] == name
    assert made.classes == ("Beach", "Forest")
    assert made.labels.tolist() == [0, 0, 1, 1]
    assert made.images.shape == (4, 3, 32, 32)
    assert len({image.numpy().tobytes() for image in made.images}) == 4
    assert _are_real(made.images, pair) == [METHODS[name].kind == "real"] * 4
    # A set is handed around: no path of this machine is told with it.
    told = [path.read_text() for path in (tmp_path / "distilled").iterdir() if path.is_file()]
    assert not any(str(Path(on_pipeline.base).parent) in text for text in told)
    # Called again, the run has it: no stage is built a second time.
    whole = (tmp_path / "distilled").stat().st_mtime_ns
    assert torch.equal(_made(name, pair, on_pipeline, tmp_path).images, made.images)
    assert (tmp_path / "distilled").stat().st_mtime_ns == whole


# The others share the code of these.
@pytest.mark.parametrize(
    "name", ["d4m", "template", *(pytest.param(name, marks=pytest.mark.slow) for name in ("minimax", "mgd3", "dpd"))]
)
def test_a_reproducible_run_draws_anew_from_its_secret(
    name: str, pair: Scenes, on_pipeline: Config, tmp_path: Path
) -> None:
    seeded = _made(name, pair, on_pipeline, tmp_path)
    assert seeded.replayable
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("latents/*")}
    secret = on_pipeline.model_copy(update={"reproducible": False})
    drawn = _made(name, pair, secret, tmp_path)
    assert not drawn.replayable
    assert (tmp_path / "secret").is_file()
    assert not any((one == other).all() for one in drawn.images for other in seeded.images)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    # The same secret draws the same images, in whatever order the stages were lost.
    shutil.rmtree(tmp_path / "distilled")
    shutil.rmtree(tmp_path / "candidates")
    assert torch.equal(_made(name, pair, secret, tmp_path).images, drawn.images)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.kind == "real"])
def test_real_images_are_of_their_class(name: str, pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    # The same scenes with classes in turn rather than side by side.
    turned = pair.subset(torch.arange(60).view(2, 30).T.flatten())
    for label, image in zip(*_labelled(_made(name, turned, on_pipeline, tmp_path)), strict=True):
        assert _are_real(image[None], turned.subset((turned.labels == label).nonzero()[:, 0])) == [True]


def _labelled(made: DistilledSet) -> tuple[list[int], torch.Tensor]:
    return made.labels.tolist(), made.images


@pytest.mark.parametrize("name", METHODS)
def test_every_module_says_where_it_is_from(name: str) -> None:
    module = import_module(METHODS[name].home)
    assert len(module.__doc__ or "") > 80
    assert "\n" not in METHODS[name].summary


@pytest.mark.parametrize(("name", "hint"), [("hurding", "did you mean 'herding'? "), ("x", "")])
def test_unknown_method(name: str, hint: str, pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _made(name, pair, on_pipeline, tmp_path)
    assert str(caught.value) == (
        f"unknown method '{name}': {hint}known: random, herding, kcenter, kmeans, reconstruction, template, d4m, "
        "minimax, mgd3, dm, dpd"
    )


@pytest.mark.parametrize("name", METHODS)
def test_class_with_too_few_images(name: str, pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    with pytest.raises(SceneError) as caught:
        _made(name, pair, on_pipeline.model_copy(update={"ipc": 31}), tmp_path)
    assert str(caught.value) == "class 'Beach' has 30 images, IPC 31 needs at least 31: lower --ipc or add images"
    assert not (tmp_path / "stages").exists()


def test_naming_the_methods_takes_no_torch() -> None:
    code = "import geodistill.methods, sys; assert geodistill.methods.METHODS; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class TestOfOtherPackages:
    @pytest.fixture
    def install(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], dict[str, Method]]:
        def installed(name: str, value: str) -> dict[str, Method]:
            points = metadata.EntryPoints([metadata.EntryPoint(name, value, methods.GROUP)])
            monkeypatch.setattr(methods.metadata, "entry_points", lambda group: points.select(group=group))
            return methods._registered()

        return installed

    def test_one_makes_a_set(
        self,
        install: Callable[[str, str], dict[str, Method]],
        pair: Scenes,
        on_pipeline: Config,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name, method in install("first", "toy:METHOD").items():
            monkeypatch.setitem(METHODS, name, method)
        made = distill(pair, on_pipeline, method="first", out=tmp_path / "run")
        assert made.about["method"] == "first"
        assert torch.equal(made.images, pair.pixels([0, 1, 30, 31], size=32))
        again = distill(pair, on_pipeline, method="first", out=tmp_path / "run")
        assert torch.equal(again.images, made.images)

    @pytest.mark.parametrize(
        ("name", "value", "why"),
        [
            ("gone", "no_such_package:METHOD", "ModuleNotFoundError: No module named 'no_such_package'"),
            ("text", "os:sep", "it is of type str, not a geodistill.provenance.Method"),
            ("other", "toy:METHOD", "it calls itself 'first'"),
        ],
    )
    def test_one_that_cannot_be_used_is_left_out(
        self,
        install: Callable[[str, str], dict[str, Method]],
        caplog: pytest.LogCaptureFixture,
        name: str,
        value: str,
        why: str,
    ) -> None:
        assert install(name, value) == {}
        package = value.split(":")[0]
        assert caplog.messages == [f"method {name!r} of package {package!r} is left out: {why}"]

    def test_names_of_this_package_stay_its_own(
        self, install: Callable[[str, str], dict[str, Method]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("toy.METHOD", replace(METHODS["kmeans"], home="toy"))
        assert install("kmeans", "toy:METHOD") == {}


def test_protection_is_dpd_s_alone(pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    private = Config.model_validate({**on_pipeline.model_dump(), "privacy": "screen"})
    with pytest.raises(ConfigError) as caught:
        distill(pair, private, method="d4m", out=tmp_path / "run")
    assert str(caught.value) == ("method 'd4m' has no privacy 'screen', only 'dpd' has: leave out one of the two")
    assert not (tmp_path / "run").exists()


def test_a_set_of_real_images_is_made_from_all_scenes_and_not_tested(
    pair: Scenes, on_pipeline: Config, tmp_path: Path
) -> None:
    config = Config.model_validate({**on_pipeline.model_dump(), "self_test": {"held_out": 0.4}})
    made = distill(pair, config, method="random", out=tmp_path / "run")
    assert _are_real(made.images, pair) == [True] * 4
    assert not (tmp_path / "run" / "self_test").exists()
