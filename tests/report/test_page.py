import base64
import hashlib
import html
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from test_sets import pixels_of

from geodistill.commands.distill import distill
from geodistill.config import Config, make_config
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError, RunError
from geodistill.evaluation.evaluate import evaluate
from geodistill.evaluation.worth import SelfTest, Worth
from geodistill.pipeline import words_of
from geodistill.prototypes import Prototypes
from geodistill.report import write_report
from geodistill.report.classes import most_confused
from geodistill.report.found import find
from geodistill.scenes import SceneData, Scenes

EVIL = "<script>alert(1)<script>"
_VOID = {"meta", "link", "img", "br", "input"}

STAGES = [
    "base",
    "latents",
    "teacher",
    "features",
    "prototypes",
    "descriptions",
    "adapter",
    "candidates",
    "chosen",
    "refined",
    "distilled",
]


class Page(HTMLParser):
    """A page as tags with their attributes and the text in each; fails on tags that do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.inside: list[int] = []
        self.texts: list[str] = []
        self.feed(self.source)
        assert self.inside == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self.texts.append("")
        if tag not in _VOID:
            self.inside.append(len(self.tags) - 1)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.inside.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.tags[self.inside.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self.inside:
            self.texts[index] += data

    def all(self, tag: str, **attributes: str) -> list[str]:
        """Return the texts of the tags that have these attributes, spaces squeezed."""
        return [
            " ".join(text.split())
            for (name, own), text in zip(self.tags, self.texts, strict=True)
            if name == tag and attributes.items() <= own.items()
        ]

    def images(self) -> dict[str, str]:
        """Return alt by data URI of all images."""
        return {own["src"]: own["alt"] for name, own in self.tags if name == "img"}

    def rows(self, caption: str) -> list[list[str]]:
        """Return the cells of the table with that caption, without its head."""
        table = next(t for t in re.findall(r"<table.*?</table>", self.source, re.S) if caption in html.unescape(t))
        lines = re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], re.S)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.S) for line in lines]
        return [[" ".join(html.unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in line] for line in cells]


@pytest.fixture(scope="module")
def run(data: SceneData, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "run"
    distill(data.train, tiny, out=out, command="geodistill distill 'a & b' --out run")
    evaluate(out / "distilled", data, protocol="probe", seeds=2, out=out)
    return out


@pytest.fixture(scope="module")
def page(run: Path, data: SceneData) -> Page:
    """With data, without sources."""
    return Page(write_report(run, data=data))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four classes, one of them meant to break out of the page."""
    scenes = fakes.make_scenes((EVIL, "a$b", "field & <b>lake", "x' onload='y"))
    folder = tmp_path_factory.mktemp("report") / "compare"
    return fakes.make_compare(folder, scenes, command="geodistill compare '<img src=x onerror=alert(2)>'")


@pytest.fixture(scope="module")
def compared(comparison: Path) -> Page:
    return Page(write_report(comparison))


def _real_in(page: Page, scenes: Scenes) -> int:
    """Return how many images of the page are one of `scenes`."""
    real = {image.numpy().tobytes() for image in scenes.pixels(size=32)}
    return sum(pixels_of(uri).numpy().tobytes() in real for uri in page.images())


def test_report_lies_in_the_run_unless_told_otherwise(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "deep" / "page.html"
    assert write_report(run) == run / "report.html"
    assert write_report(run, out=other) == other
    assert other.read_bytes() == (run / "report.html").read_bytes()


def test_the_owner_s_page_has_a_name_of_its_own_and_lies_in_no_set(run: Path, data: SceneData) -> None:
    shared = write_report(run).read_bytes()
    assert write_report(run, data=data, owner=True) == run / "report-owner.html"
    assert (run / "report.html").read_bytes() == shared
    inside = run / "distilled" / "page.html"
    with pytest.raises(ConfigError) as caught:
        write_report(run, data=data, owner=True, out=inside)
    assert str(caught.value) == (
        f"--out {inside} is in the folder of a set, which is shared: the page shows training images"
    )
    with pytest.raises(RunError) as folder:
        write_report(run, out=run / "distilled")
    assert str(folder.value) == f"{run / 'distilled'} cannot be a file, a folder is in its place: choose another --out"
    (run / "report-owner.html").unlink()


@pytest.mark.parametrize(("low", "high", "flagged"), [(-0.06, -0.02, True), (-0.06, 0.02, False)])
def test_self_test_is_at_the_head(low: float, high: float, flagged: bool, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert "self-test" not in Page(write_report(run)).source
    found = SelfTest(600, 0, Worth(0.6, 0.641, low, high), Worth(0.66, 0.641, -0.01, 0.03))
    (tmp_path / "run" / "self_test").mkdir()
    (tmp_path / "run" / "self_test" / "self_test.json").write_text(json.dumps(asdict(found)))
    shown = Page(write_report(tmp_path / "run"))
    assert shown.all("p", **{"class": "self-test flag" if flagged else "self-test"}) == [found.summary]
    assert shown.source.index(found.summary) < shown.source.index('id="images"')


def test_self_test_that_is_still_to_be_done_is_missing(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    about["settings"]["config"]["self_test"] = {"held_out": 0.1}
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    assert "stage self_test is not finished: the run's command goes on with it" in Page(
        write_report(tmp_path / "run")
    ).all("li")


def test_every_image_is_shown_with_what_is_known_of_it(run: Path, page: Page) -> None:
    distilled = DistilledSet.load(run / "distilled")
    shown = {pixels_of(uri).numpy().tobytes() for uri in page.images()}
    assert {image.numpy().tobytes() for image in distilled.images} <= shown
    captions = page.all("figcaption")
    for record in distilled.records:
        told = f"teacher {record['scores']['teacher_probability']:.2f}"
        assert any(caption.startswith(told) and record["description"] in caption for caption in captions)


def test_without_word_nothing_of_a_real_image_is_in_the_page(run: Path, page: Page, data: SceneData) -> None:
    assert data.test is not None
    assert _real_in(page, data.train) == _real_in(page, data.test) == 0
    assert len(page.images()) == 20  # the distilled ones; those in tables are the same at this size
    assert not [key for key in data.train.keys if key in page.source]


def test_sources_are_the_neighbours_of_the_prototypes(run: Path, data: SceneData, tmp_path: Path) -> None:
    shown = Page(write_report(run, data=data, owner=True, out=tmp_path / "page.html"))
    prototypes = Prototypes.load(run / "prototypes")
    ranks = {
        record["file"]: record["prototype"]
        for record in json.loads((run / "distilled" / "manifest.json").read_text())["images"]
    }
    followed = {(file.split("/")[0], rank) for file, rank in ranks.items()}
    own = [prototypes.members[2 * data.train.classes.index(name) + rank] for name, rank in followed]
    assert _real_in(shown, data.train) == sum(min(3, len(members)) for members in own)
    assert "Under the dotted line: the real images nearest" in shown.source


def test_sets_of_real_images_are_held_back(comparison: Path, compared: Page, tmp_path: Path) -> None:
    scenes = fakes.make_scenes((EVIL, "a$b", "field & <b>lake", "x' onload='y"))
    assert _real_in(compared, scenes) == 0
    assert "Not shown because the images are real ones, or may be: random, k-means, reconstruction." in compared.source
    data = SceneData(scenes, None)
    shown = Page(write_report(comparison, data=data, owner=True, out=tmp_path / "page.html"))
    assert _real_in(shown, scenes) == 12  # three images of each of four classes; three sets show the same
    assert "Not shown because" not in shown.source
    # What the owner's page alone tells does not become markup either.
    assert shown.all("code")[0] == "geodistill compare '<img src=x onerror=alert(2)>'"
    assert not [own for _, own in shown.tags if "onerror" in own]


def test_others_show_a_few_images_of_their_largest_set(compared: Page) -> None:
    summaries = [text for text in compared.all("summary") if text.startswith("Images of")]
    assert summaries == ["Images of template, IPC 3", "Images of + prototypes, IPC 3", "Images of d4m, IPC 3"]
    # of dpd and three others three each of four classes; the small ones in tables are the same at this size
    assert len(compared.images()) == 4 * 3 * 4


def test_nothing_from_data_becomes_markup(compared: Page) -> None:
    assert len(compared.all("script")) == 1
    assert "alert" not in compared.all("script")[0]
    assert EVIL in compared.all("h3")
    assert "field & <b>lake" in compared.all("h3")
    assert not compared.all("b")
    known = {"onload", "onerror", "onclick"}
    assert not [own for _, own in compared.tags if known & own.keys()]


@pytest.mark.parametrize("which", ["page", "compared"])
def test_nothing_is_loaded_from_elsewhere(which: str, request: pytest.FixtureRequest) -> None:
    shown: Page = request.getfixturevalue(which)
    for name, own in shown.tags:
        for key in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
            assert own.get(key, "#").startswith(("#", "data:")), (name, own)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", shown.source))
    assert "@import" not in shown.source
    policy = next(own["content"] for _, own in shown.tags if own.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", shown.source, re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


@pytest.mark.parametrize("which", ["page", "compared"])
def test_page_can_be_read_by_keyboard_and_screen_reader(which: str, request: pytest.FixtureRequest) -> None:
    shown: Page = request.getfixturevalue(which)
    names = [name for name, _ in shown.tags]
    assert ("html", {"lang": "en"}) in shown.tags
    assert [names.count(name) for name in ("main", "header", "footer", "h1", "title", "nav")] == [1] * 6
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [own["id"] for _, own in shown.tags if "id" in own]
    assert len(ids) == len(set(ids))
    targets = {own["href"][1:] for name, own in shown.tags if name == "a"}
    assert targets <= set(ids)
    links = [own["href"] for name, own in shown.tags if name == "a"]
    assert links[0] == "#main"  # the skip link comes first
    assert all(own["alt"] for name, own in shown.tags if name == "img")
    labelled = {own["aria-labelledby"] for _, own in shown.tags if "aria-labelledby" in own}
    assert labelled <= set(ids)
    assert names.count("table") == names.count("caption")
    assert all(own.get("scope") in ("row", "col") for name, own in shown.tags if name == "th")
    plots = [own for _, own in shown.tags if own.get("role") == "img"]
    assert len(plots) == names.count("svg")
    assert all(own["aria-label"] for own in plots)
    boxes = [own for _, own in shown.tags if own.get("class") == "scroll"]
    assert len(boxes) == names.count("table")
    assert all(own["tabindex"] == "0" and own["role"] == "group" and own["aria-label"] for own in boxes)


def _luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _mixed(colour: str, share: float, page: str) -> str:
    pairs = [(int(colour[k : k + 2], 16), int(page[k : k + 2], 16)) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def test_contrast_is_enough_in_light_and_dark() -> None:
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    style = (files("geodistill.report") / "style.css").read_text()
    for block in re.findall(r":root \{(.*?)\}", style, re.S):
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        text = [("ink", "page"), ("ink", "panel"), ("quiet", "page"), ("quiet", "panel"), ("link", "page")]
        for front, back in [*text, ("ink", "warn-page"), ("warn", "page")]:
            assert _contrast(colours[front], colours[back]) >= 4.5, (front, back)
        for k in range(1, 9):
            assert _contrast(colours[f"series-{k}"], colours["page"]) >= 3
        most = max(int(share) for share in re.findall(r"var\(--heat\) (\d+)%", style)) / 100
        assert _contrast(colours["ink"], _mixed(colours["heat"], most, colours["page"])) >= 4.5


def test_figures_of_a_distill_run_are_those_of_its_evaluation(run: Path, page: Page) -> None:
    path = next((run / "evaluation" / "probe-efficientnet-lite0").glob("figures-*.json"))
    found = json.loads(path.read_text())
    own, random, full = page.rows("All figures, one row for each set, protocol and network")
    assert own[:5] == ["dpd", "2", "probe", "efficientnet-lite0", "2"]
    assert own[5] == "synthetic"
    assert own[6] == f"{100 * found['oa']:.1f} ± 0.0"  # the probe gives the same for every seed
    rho = found["likeness"]["nearness"]["ratio"]
    assert f"{rho:.2f}{' copying' if rho < 0.5 else ''}" in own
    assert f"{100 * found['ior']:+.1f}" in own
    assert (random[0], full[0], full[1]) == ("random real", "all real images", "all")


def test_classes_come_worst_first_with_what_they_are_taken_for(compared: Page) -> None:
    rows = compared.rows("Accuracy of each class, dpd, IPC 3 (probe, efficientnet-lite0)")
    # fakes.confusion_of: OA 0.4 + 0.19 * log10(3) = 0.49, less 0.02 for each later class; of 30 images
    assert rows == [
        ["x' onload='y", "43.3", EVIL, "56.7"],
        ["a$b", "46.7", "field & <b>lake", "53.3"],
        ["field & <b>lake", "46.7", "x' onload='y", "53.3"],
        [EVIL, "50.0", "a$b", "50.0"],
    ]


def test_most_confused_by_hand() -> None:
    assert most_confused([5, 1, 4], 0) == (2, 0.4)
    assert most_confused([5, 1, 4], 2) == (0, 0.5)
    assert most_confused([0, 3, 0], 1) == (None, 0.0)


def test_heat_map_has_every_count(compared: Page) -> None:
    rows = compared.rows("Confusion matrix, dpd, IPC 3 (probe, efficientnet-lite0, 3 seeds)")
    oa = fakes.make_row("dpd", 3, fakes.BENCHES[0], 4)["confusion"]
    assert [[int(cell) for cell in row[1:]] for row in rows] == oa
    assert re.search(r'<td class="h5 right">1[45]</td>', compared.source)  # about half of 30, rounded up


def test_rungs_and_pairs_and_copying(compared: Page) -> None:
    assert ["+ prototypes", "probe, efficientnet-lite0", "3", "37.2 ± 1.0", "+24.8", "0.65"] in compared.rows(
        "Ablation"
    )
    pairs = compared.rows("Differences in overall accuracy")
    assert pairs == [
        ["dpd against random", "3", "probe, efficientnet-lite0", "-3.0", "-6.0 to +1.0", "no difference shown"]
    ]
    near = compared.rows("Accuracy and nearness (probe, efficientnet-lite0)")
    assert [row[0] for row in near if row[1].endswith("copying")] == [
        f"{method}, IPC {ipc}" for method in ("random", "k-means", "reconstruction") for ipc in (1, 3)
    ]


def test_training_cost_settings_and_versions(run: Path, page: Page) -> None:
    losses = json.loads((run / "base" / "losses.json").read_text())
    assert [row[2] for row in page.rows("Training of the base: losses")] == [f"{loss:.4f}" for loss in losses]
    stages = [row[0] for row in page.rows("Time and memory of each stage")]
    assert stages == list(map(words_of, STAGES))
    versions = json.loads((run / "run.json").read_text())["versions"]
    assert dict(page.rows("Versions")) == versions


def test_the_owner_s_page_alone_tells_how_to_repeat_the_run(
    run: Path, page: Page, data: SceneData, tmp_path: Path
) -> None:
    owner = Page(write_report(run, data=data, owner=True, out=tmp_path / "page.html"))
    command, settings = owner.all("code")
    assert command == "geodistill distill 'a & b' --out run"
    assert settings == " ".join((run / "config.toml").read_text().split())
    warning = "This page shows real images. It is for the owner of the data; do not share it with the set."
    assert warning in owner.all("p")
    assert warning not in page.all("p")
    (settings,) = page.all("code")
    told = json.loads(settings)
    assert told["ipc"] == 2
    assert "seed" not in told
    assert "geodistill distill" not in page.source
    assert page.all("h1") == ["geodistill report"]


def test_map_says_when_it_has_no_data(page: Page, run: Path, tmp_path: Path) -> None:
    assert "Map of 120 real and 20 distilled images." in page.source
    without = Page(write_report(run, out=tmp_path / "page.html"))
    assert "The map needs the real images: write the report again with the data." in without.source
    assert "Map of 120" not in without.source


def test_nothing_is_missing_from_a_finished_run(page: Page, compared: Page) -> None:
    assert "What is missing" not in page.source + compared.source


def test_run_that_has_just_begun(tmp_path: Path) -> None:
    config = {"base": "scratch", "finetune": {"steps": 5}, "ipc": 2}
    fakes.write_about(tmp_path / "run", {"method": "dpd", "config": config})
    shown = Page(write_report(tmp_path / "run"))
    missing = [line for line in shown.all("li") if "not finished" in line]
    assert missing == [f"stage {name} is not finished: the run's command goes on with it" for name in STAGES]
    # The page may be shared: the path of the run is for its owner.
    told = "no accuracy yet: run `geodistill evaluate RUN --data DATA`, with the scenes for DATA"
    assert told in shown.all("li")
    assert str(tmp_path) not in shown.source
    for note in ("There are no images to show.", "No figures yet.", "No stage has been begun yet."):
        assert note in shown.all("p")


@pytest.mark.parametrize(
    ("asked", "stages"),
    [
        ({"finetune": {"steps": 0}, "sampling": {"follow": "none"}}, []),
        ({"finetune": {"steps": 0}, "sampling": {"follow": "start"}}, ["centres"]),
        ({"finetune": {"steps": 9, "consistency": 0}, "sampling": {"follow": "none"}}, ["adapter"]),
        ({"finetune": {"steps": 9, "consistency": 0.1}, "sampling": {"follow": "none"}}, ["teacher", "adapter"]),
    ],
)
def test_private_runs_have_stages_of_their_own(asked: dict[str, Any], stages: list[str], tmp_path: Path) -> None:
    config = {"privacy": "dp", "epsilon": 8.0, "delta": 1e-5, "ipc": 2, **asked}
    fakes.write_about(tmp_path / "run", {"method": "dpd", "config": config})
    shown = Page(write_report(tmp_path / "run"))
    missing = [line.split()[1] for line in shown.all("li") if "not finished" in line]
    encoded = ["latents"] if stages else []
    expected = [*encoded, "features", "profiles", *stages, "candidates", "chosen", "moments", "refined", "distilled"]
    assert missing == expected
    assert "differential: ε = 8.0, δ = 1e-05, one image blanked (zero-out)" in shown.all("dd")


def test_a_private_run_keeps_figures_about_its_training_images_for_the_owner(comparison: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(comparison, folder)
    about = json.loads((folder / "run.json").read_text())
    about["settings"].setdefault("config", {}).update({"privacy": "dp", "epsilon": 8, "delta": 1e-5})
    (folder / "run.json").write_text(json.dumps(about))
    text = " ".join(Page(write_report(folder)).texts)
    assert "Kept back, as the page may be shared: nearness, similarity" in text
    columns = found_figures(folder, owner=False)
    assert columns == {None}
    assert 0.64 in found_figures(folder, owner=True)
    rows = {owner: find(folder, None, owner).figures.rows for owner in (False, True)}
    # Classifiers trained on real images are no private release, and differences to them give them away.
    assert {row.kind for row in rows[False]} == {"synthetic"}
    assert {row.kind for row in rows[True]} == {"synthetic", "real"}
    assert {(row.ior, row.share_of_full, row.hlr) for row in rows[False]} == {(None, None, None)}


def test_protection_is_that_of_the_set_shown(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    about["settings"]["config"]["privacy"] = "screen"
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    told = "screened: no image is nearer to a training image of its class"
    # The images were made without it, as those of an updated set may be.
    assert told not in Page(write_report(tmp_path / "run")).source
    manifest = tmp_path / "run" / "distilled" / "manifest.json"
    whole = json.loads(manifest.read_text())
    whole["about"]["screened"] = True
    manifest.write_text(json.dumps(whole))
    assert told in Page(write_report(tmp_path / "run")).source


def test_figures_of_a_set_that_was_made_anew_are_not_shown(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shown = DistilledSet.load(run / "distilled")
    assert find(tmp_path / "run", None, False).figures.rows
    shown.images[0, 0, 0, 0] ^= 255
    shutil.rmtree(tmp_path / "run" / "distilled")
    shown.save(tmp_path / "run" / "distilled")
    assert not find(tmp_path / "run", None, False).figures.rows


def found_figures(folder: Path, *, owner: bool) -> set[float | None]:
    return {row.rho for row in find(folder, None, owner).figures.rows}


def test_run_under_way_shows_what_it_has(run: Path, tmp_path: Path) -> None:
    for name in ("run.json", "config.toml"):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(run / name, tmp_path / "run" / name)
    for name in ("base", "latents", "stages"):
        shutil.copytree(run / name, tmp_path / "run" / name)
    shown = Page(write_report(tmp_path / "run"))
    assert "stage teacher is not finished: the run's command goes on with it" in shown.all("li")
    assert not [line for line in shown.all("li") if line.startswith("stage base")]
    assert shown.rows("Training of the base: losses")


def test_comparison_under_way(comparison: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compare"
    shutil.copytree(comparison, folder)
    (folder / "compare.json").unlink()
    shutil.rmtree(folder / "sets" / "d4m-ipc3" / "distilled")
    shown = Page(write_report(folder))
    lines = [line for line in shown.all("li") if line.endswith("the run's command goes on with it")]
    assert lines[0] == "the images of d4m, IPC 3 are not finished: the run's command goes on with it"
    assert "no accuracy of dpd, IPC 1 yet: the run's command goes on with it" in lines
    # Without figures nobody knows what a method that is not installed makes.
    hidden = "+ prototypes, k-means, random, reconstruction"
    assert f"Not shown because the images are real ones, or may be: {hidden}." in shown.source
    shutil.rmtree(folder / "sets")
    assert "no images and no figures yet" in write_report(folder).read_text()


def test_single_set_of_real_images_is_held_back(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    images = torch.from_numpy(np.full((2, 3, 32, 32), 9, dtype=np.uint8))
    DistilledSet(images, torch.tensor([0, 1]), ("a", "b"), (), {"method": "random"}).save(folder / "distilled")
    fakes.write_about(folder, {"method": "random", "config": {"ipc": 1}})
    shown = Page(write_report(folder))
    assert shown.images() == {}
    assert "Not shown because the images are real ones, or may be: random." in shown.all("p")


def test_a_run_of_real_images_is_headed_by_its_own_figures(data: SceneData, tmp_path: Path) -> None:
    out = tmp_path / "run"
    distill(data.train, make_config({"ipc": 2, "size": 32}), method="kmeans", out=out)
    found = evaluate(out / "distilled", data, protocol="probe", seeds=2, out=out)
    shown = Page(write_report(out))
    assert shown.images() == {}
    (line,) = shown.rows("What kmeans, IPC 2 is worth")
    assert line[1].startswith(f"{100 * found.oa:.1f}")


def test_an_updated_set_is_the_one_shown(run: Path, data: SceneData, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    other = torch.from_numpy(np.full((2, 3, 32, 32), 9, dtype=np.uint8))
    given = DistilledSet(other, torch.tensor([0, 1]), ("a", "b"), (), {"method": "dpd"})
    given.save(tmp_path / "run" / "updated")
    # It was made from scenes of two archives: no folder holds them all.
    shown = Page(write_report(tmp_path / "run", data=None))
    assert {int(pixels_of(uri).float().mean()) for uri in shown.images()} == {9}
    assert "A distilled set made by the method dpd, an earlier one with new images." in shown.all("p")
    fewer = SceneData(data.train.subset(range(len(data.train) - 1)), None)
    with pytest.raises(RunError, match=r"^the scenes have other classes than the run"):
        write_report(tmp_path / "run", data=fewer)


@pytest.mark.parametrize("make", [True, False])
def test_folder_that_is_no_run(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(RunError) as caught:
        write_report(folder)
    assert str(caught.value) == (
        f"{folder} is no run, it {'holds no run.json' if make else 'is no folder'}: "
        "give the folder that `geodistill distill` or `geodistill compare` wrote"
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 3}'])
def test_damaged_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError) as caught:
        write_report(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'run.json'} is not the record of a geodistill run: give the folder of another run"
    )


def test_other_scenes_are_refused(run: Path, data: SceneData) -> None:
    fewer = SceneData(data.train.subset(range(len(data.train) - 1)), None)
    with pytest.raises(RunError) as caught:
        write_report(run, data=fewer)
    assert str(caught.value) == (f"{run} was made from other scenes than these: give the data that it was made from")


def test_sources_need_data(run: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_report(run, owner=True)
    assert str(caught.value) == ("source images are to be shown, but there are no scenes: give the data as well")


_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_PROBE = """\
<!doctype html><meta charset="utf-8"><body><iframe id="f" style="width: %(width)dpx; height: 800px; border: 0"
srcdoc="%(page)s"></iframe><pre id="found"></pre><script>
document.getElementById("f").addEventListener("load", (event) => {
  const view = event.target.contentWindow, page = view.document;
  const table = [...page.querySelectorAll("table[data-sortable]")].find((t) => t.caption.textContent.startsWith("All"));
  const place = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.trim().startsWith("OA"));
  const column = () => [...table.tBodies[0].rows].map((row) => row.cells[place].textContent.trim());
  const head = table.tHead.rows[0].cells[place];
  const found = {width: page.documentElement.scrollWidth, body: page.body.scrollWidth, before: column()};
  found.plots = [...page.querySelectorAll("svg")].every((svg) => svg.getBoundingClientRect().height > 100);
  found.broken = [...page.images].filter((image) => image.complete && !image.naturalWidth).length;
  head.querySelector("button").click();
  found.up = column();
  found.said = [head.getAttribute("aria-sort")];
  head.querySelector("button").click();
  found.down = column();
  found.said.push(head.getAttribute("aria-sort"));
  found.loaded = view.performance.getEntriesByType("resource").map((entry) => entry.name);
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@pytest.mark.skipif(_BROWSER is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("which", ["page", "compared"])
def test_in_a_browser(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    shown: Page = request.getfixturevalue(which)
    probe = tmp_path / "probe.html"
    probe.write_text(_PROBE % {"width": 390, "page": html.escape(shown.source)}, encoding="utf-8")
    command = [str(_BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    done = subprocess.run(
        [*command, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=100, check=True
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    result = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.S)
    assert result is not None
    found = json.loads(html.unescape(result[1]))
    assert found["width"] <= 390
    assert found["body"] <= 390
    assert found["plots"]
    assert found["broken"] == 0
    assert [name for name in found["loaded"] if not name.startswith("data:")] == []
    values = [float(text.split()[0]) for text in found["up"]]
    assert values == sorted(values)
    assert found["down"] == sorted(found["up"], key=lambda text: -float(text.split()[0]))
    assert sorted(found["before"]) == sorted(found["up"])
    assert found["said"] == ["ascending", "descending"]
