"""Comparison of a distilled set with all real images and with random real images, under one protocol."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from geodistill.descriptions import class_prompt
from geodistill.distilled import DistilledSet, set_folder
from geodistill.errors import ConfigError, SceneError
from geodistill.evaluation.bench import (
    VERSION,
    Bench,
    Likeness,
    Training,
    cell_name,
    hash_of,
    open_store,
)
from geodistill.evaluation.fidelity import Score, clip_score
from geodistill.evaluation.measures import Measures, hlr, ior, mean_std, share
from geodistill.evaluation.protocols import check_protocol
from geodistill.networks import PRETRAINED
from geodistill.provenance import fingerprint
from geodistill.scenes.reading import Reading
from geodistill.scenes.scenes import SceneData, Scenes
from geodistill.seeding import generator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Results of one distilled set: measures for each seed after training on it, on random real and on all real images.

    `full` is empty if that reference was left out. `tested_on` is the part of the data that classifiers were tested on,
    "test" or "val". `clip` is the CLIP score, or None if it was not requested. Ratios
    and differences are those of means over the seeds.
    """

    protocol: str
    network: str
    seeds: tuple[int, ...]
    classes: tuple[str, ...]
    ipc: int
    size: int
    distilled: tuple[Measures, ...]
    random: tuple[Measures, ...]
    full: tuple[Measures, ...]
    likeness: Likeness
    clip: float | None = None
    tested_on: str = "test"

    @property
    def oa(self) -> float:
        """Mean overall accuracy of the distilled set."""
        return mean_std([m.oa for m in self.distilled])[0]

    @property
    def ior(self) -> float:
        """Improvement in overall accuracy over the same number of random real images."""
        return ior(self.oa, mean_std([m.oa for m in self.random])[0])

    @property
    def share(self) -> float | None:
        """Share of the full data's overall accuracy."""
        return share(mean_std([m.oa for m in self.full])[0], self.oa) if self.full else None

    @property
    def hlr(self) -> float | None:
        """Hard-label recovery: the overall accuracy that is lost against the full data."""
        return hlr(mean_std([m.oa for m in self.full])[0], self.oa) if self.full else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        figures = {"oa": self.oa, "ior": self.ior, "share": self.share, "hlr": self.hlr}
        plain: dict[str, Any] = json.loads(json.dumps({**asdict(self), **figures}))
        return plain


def evaluate(
    distilled: DistilledSet | Path | str,
    data: SceneData,
    *,
    protocol: str = "finetune",
    network: str = PRETRAINED,
    seeds: int | Sequence[int] = 3,
    size: int | None = None,
    steps: int | None = None,
    full: bool = True,
    clip: str | None = None,
    out: Path | str | None = None,
    save: Path | str | None = None,
) -> Evaluation:
    """Train on `distilled` (a set or its folder), test on `data.test`, compare with real images; return all measures.

    Args:
        distilled: a DistilledSet, a run, the folder of a set, or any image folder `<class>/<image>`.
        data: real scenes with the same class names; classifiers are tested on `test`, `train` gives the references.
            Their files are read as those were that the set was made from.
        protocol: probe, finetune, scratch, finetune-soft or scratch-soft.
        network: a name that `check_network` knows.
        seeds: their number (0, 1, ...), or the seeds themselves.
        size: side in pixels at which everything is read; the distilled set's own by default.
        steps: replaces the protocol's number of training steps, for the references too.
        full: also train on all real images, which takes longest; without it there is no share and no HLR.
        clip: a CLIP model's folder or hub name, for the CLIP score of images and their descriptions.
        out: folder; predictions are stored in `<out>/evaluation/<protocol>-<network>/` and reused from there.
        save: folder; the trained classifiers are kept in `<save>/<protocol>-<network>/`, for `Classifier.load`.

    Raises:
        DistilledSetError: `distilled` is not a distilled set.
        SceneError: classes differ, no test images, or fewer real images than distilled ones in a class.
        ConfigError: unknown protocol or network, no seeds.
        RunError: `out` cannot be written.
    """
    check_protocol(protocol, network)
    if not isinstance(data, SceneData):
        raise SceneError(f"data are {type(data).__name__}: give what open_scenes returns")
    chosen = _seeds(seeds)
    subject = _sized(distilled, size, data.train.reading)
    if subject.reading is not None:
        data = data.read_by(subject.reading)
    _check_classes(subject, data)
    _warn_of_uneven(subject)
    kept = None if save is None else Path(save)
    bench = Bench(data, subject.size, store=open_store(out), steps=steps, save=kept)
    picks = [random_real(data.train, subject, seed) for seed in chosen]
    trainings = {
        "distilled": [Training.on_set("distilled", subject)] * len(chosen),
        "random": [Training.on_scenes("random", pick, subject.size) for pick in picks],
        "full": [Training.on_scenes("full", data.train, subject.size)] * len(chosen) if full else [],
    }
    measured = bench.measure_all(trainings, protocol, network, chosen)
    result = Evaluation(
        protocol,
        network,
        chosen,
        subject.classes,
        subject.ipc,
        subject.size,
        measured["distilled"],
        measured["random"],
        measured["full"],
        bench.likeness(subject),
        clip_score(subject.images, _texts(subject), clip) if clip else None,
        data.tested_part,
    )
    name = fingerprint(VERSION, hash_of(subject), bench.test.fingerprint(), list(chosen), steps, full, clip)
    # The set may be made anew: the report shows figures of the set that is there.
    text = json.dumps(result.as_dict() | {"set": hash_of(subject)}, indent=2, sort_keys=True)
    bench.write(f"{cell_name(protocol, network)}/figures-{name[:16]}.json", text)
    return result


def _texts(distilled: DistilledSet) -> list[str]:
    """Return each image's description, or the prompt of its class if it has none."""
    prompts = [class_prompt(distilled.classes[label]) for label in distilled.labels.tolist()]
    return [record.get("description", prompt) for record, prompt in zip(distilled.records, prompts, strict=True)]


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise ConfigError(f"seeds is {seeds}: give at least 1")
    return chosen


def _sized(distilled: DistilledSet | Path | str, size: int | None, reading: Reading) -> DistilledSet:
    if not isinstance(distilled, DistilledSet):
        return DistilledSet.load(set_folder(Path(distilled)), size=size, reading=reading)
    if size not in (None, distilled.size):
        raise ConfigError(f"the distilled images are {distilled.size} px, size is {size}: leave size out")
    return distilled


def _check_classes(distilled: DistilledSet, data: SceneData) -> None:
    """Raise SceneError unless both have the same classes, which are sorted, so that equal names have equal labels."""
    ours, theirs = set(distilled.classes), set(data.train.classes)
    if theirs - ours:
        raise SceneError(f"the distilled set has no class {min(theirs - ours)!r}, which the data has: distil it again")
    if ours - theirs:
        raise SceneError(f"the data has no class {min(ours - theirs)!r}, which the distilled set has: use its own data")


def _warn_of_uneven(distilled: DistilledSet) -> None:
    counts = torch.bincount(distilled.labels, minlength=len(distilled.classes))
    few, many = int(counts.argmin()), int(counts.argmax())
    if counts[few] < counts[many]:
        log.warning(
            "class %r has %d images, class %r %d: are some missing? Random real images are drawn in the same numbers",
            *(distilled.classes[few], int(counts[few])),
            *(distilled.classes[many], int(counts[many])),
        )


def random_real(train: Scenes, distilled: DistilledSet, seed: int) -> Scenes:
    """Return as many random real images of each class as the distilled set has."""
    wanted = torch.bincount(distilled.labels, minlength=len(distilled.classes)).tolist()
    chosen = []
    for label, count in enumerate(wanted):
        members = (train.labels == label).nonzero().flatten()
        if len(members) < count:
            name = distilled.classes[label]
            raise SceneError(
                f"class {name!r} has {len(members)} training images, fewer than the {count} distilled ones"
            )
        order = torch.randperm(len(members), generator=generator(seed, "random reference", label))
        chosen += members[order[:count]].tolist()
    return train.subset(chosen)


def summary_table(result: Evaluation) -> Table:
    """Return the comparison as a rich table: a row for each training set, figures in per cent."""
    seeds = f"{len(result.seeds)} seed{'s' if len(result.seeds) > 1 else ''}"
    on = "" if result.tested_on == "test" else ", tested on validation scenes"
    title = f"{result.protocol}, {result.network}, {result.size} px, {seeds}{on}"
    table = Table(title=title, caption=_caption(result))
    table.add_column("trained on")
    for name in ("OA %", "AA %", "kappa"):
        table.add_column(name, justify="right")
    rows = {
        "all real images": result.full,
        f"random real, {result.ipc} a class": result.random,
        f"distilled, {result.ipc} a class": result.distilled,
    }
    for name, measures in rows.items():
        if measures:
            oa, aa = _percent([m.oa for m in measures]), _percent([m.aa for m in measures])
            table.add_row(name, oa, aa, "{:.3f} ± {:.3f}".format(*mean_std([m.kappa for m in measures])))
    return table


def class_table(result: Evaluation) -> Table:
    """Return each class's accuracy as a rich table, the distilled set's weakest class first."""
    table = Table(title="accuracy of each class, %")
    columns = {"distilled": result.distilled, "random real": result.random, "all real": result.full}
    shown = {name: _class_means(measures) for name, measures in columns.items() if measures}
    table.add_column("class")
    for name in shown:
        table.add_column(name, justify="right")
    for label in sorted(range(len(result.classes)), key=lambda k: shown["distilled"][k]):
        table.add_row(escape(result.classes[label]), *(f"{100 * means[label]:.1f}" for means in shown.values()))
    return table


def _class_means(measures: Sequence[Measures]) -> list[float]:
    return [mean_std(values)[0] for values in zip(*(m.per_class for m in measures), strict=True)]


def _percent(values: Sequence[float]) -> str:
    mean, std = mean_std(values)
    return f"{100 * mean:.1f} ± {100 * std:.1f}"


def _caption(result: Evaluation) -> str:
    parts = [f"improvement over random (IOR) {100 * result.ior:+.1f} points"]
    if result.share is not None and result.hlr is not None:
        parts.insert(0, f"{100 * result.share:.1f} % of the full data's OA (HLR {100 * result.hlr:.1f} points)")
    near = result.likeness.nearness
    parts.append(
        f"nearness ρ {near.ratio:.2f} (pixel {near.pixel:.2f}, feature {near.feature:.2f}; 1: fresh, 0: copies)"
    )
    parts.append(f"nearest similarity {result.likeness.nearest_similarity:.3f}")
    parts += [_told("KID", result.likeness.kid), _told("FID", result.likeness.fid)]
    if result.clip is not None:
        parts.append(f"CLIP score {result.clip:.1f}")
    return "; ".join(parts)


def _told(name: str, score: Score) -> str:
    return f"no {name} ({score.reason})" if score.value is None else f"{name} {score.value:.3g}"


def cross_table(results: Sequence[Evaluation]) -> Table:
    """Return a table with one row per network: OA in per cent after distilled, random real and all real images."""
    table = Table(title=f"{results[0].protocol}, across networks, OA %")
    table.add_column("network")
    for name in ("distilled", "random real", "all real", "share of full"):
        table.add_column(name, justify="right")
    for result in results:
        columns = [
            _percent([m.oa for m in one]) if one else "" for one in (result.distilled, result.random, result.full)
        ]
        table.add_row(result.network, *columns, "" if result.share is None else f"{result.share:.1%}")
    return table
