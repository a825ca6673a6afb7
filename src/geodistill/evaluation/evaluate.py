"""A distilled set against all real images and against random real images, under one protocol."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load, save

from geodistill.distilled import MANIFEST, DistilledSet
from geodistill.errors import ConfigError, SceneError
from geodistill.evaluation.measures import Measures, hlr, ior, mean_std, measure, share
from geodistill.evaluation.networks import PRETRAINED
from geodistill.evaluation.protocols import check_protocol, recipe_steps, train_and_predict
from geodistill.privacy.nearness import Nearness, nearness_ratio
from geodistill.run import explain_os_errors, fingerprint, write_atomic
from geodistill.scenes.scenes import SceneData, Scenes
from geodistill.seeding import generator

# Raise it when the same inputs give other predictions or another nearness ratio.
VERSION = 2

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """What one distilled set is worth: measures for each seed, trained on it, on random real and on all real images.

    `full` is empty where that reference was left out. Ratios and differences are of means over the seeds.
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
    nearness: Nearness

    @property
    def oa(self) -> float:
        """Mean overall accuracy of the distilled set."""
        return mean_std([m.oa for m in self.distilled])[0]

    @property
    def ior(self) -> float:
        """Improvement over random real images of the same number."""
        return ior(self.oa, mean_std([m.oa for m in self.random])[0])

    @property
    def share(self) -> float | None:
        """Share of the full data's overall accuracy."""
        return share(mean_std([m.oa for m in self.full])[0], self.oa) if self.full else None

    @property
    def hlr(self) -> float | None:
        """Hard-label recovery: what is lost against the full data."""
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
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Train on `distilled` (a set or its folder), test on `data.test`, compare with real images; return all measures.

    Args:
        distilled: a DistilledSet, a folder that it was saved to, or any image folder `<class>/<image>`.
        data: real scenes with the same class names; `test` gives the figures, `train` the references.
        protocol: probe, finetune or scratch.
        network: a name in NETWORKS.
        seeds: how many (0, 1, ...), or which.
        size: side in pixels at which everything is read; the distilled set's own by default.
        steps: replaces the protocol's number of training steps, for the references too.
        full: also train on all real images, which takes longest; without it there is no share and no HLR.
        out: folder; predictions go to `<out>/evaluation/<protocol>-<network>/` and are used again from there.
        progress: called as progress(what, done, steps) after each training step.

    Raises:
        DistilledSetError: `distilled` is no distilled set.
        SceneError: classes differ, no test images, or fewer real images than distilled ones in a class.
        ConfigError: unknown protocol or network, no seeds.
        RunError: `out` cannot be written.
    """
    check_protocol(protocol, network)
    chosen = _seeds(seeds)
    subject = _sized(distilled, size)
    test = _check_classes(subject, data)
    bench = _Bench(protocol, network, subject.size, steps, data.train, test, _store(out, protocol, network), progress)
    own = _Training("distilled", _hash(subject), lambda: (subject.images, subject.labels))
    picks = [_random_real(data.train, subject, seed) for seed in chosen]
    result = Evaluation(
        protocol,
        network,
        chosen,
        subject.classes,
        subject.ipc,
        subject.size,
        tuple(bench.measure(own, len(subject), seed) for seed in chosen),
        tuple(bench.measure_real("random", real, seed) for real, seed in zip(picks, chosen, strict=True)),
        tuple(bench.measure_real("full", data.train, seed) for seed in chosen) if full else (),
        bench.nearness(subject, own.key),
    )
    bench.record(result, own.key)
    return result


@dataclass(frozen=True)
class _Training:
    """Images to train on, read only when they are needed; `key` stands for their content."""

    name: str
    key: str
    read: Callable[[], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class _Bench:
    """One protocol on one test set: trains, predicts, and remembers what it predicted."""

    protocol: str
    network: str
    size: int
    steps: int | None
    train: Scenes
    test: Scenes
    store: Path | None
    progress: Progress | None
    memo: dict[str, torch.Tensor] = field(default_factory=dict)

    def measure_real(self, name: str, scenes: Scenes, seed: int) -> Measures:
        training = _Training(name, scenes.fingerprint(), lambda: (scenes.pixels(size=self.size), scenes.labels))
        return self.measure(training, len(scenes), seed)

    def measure(self, training: _Training, count: int, seed: int) -> Measures:
        logits = self._logits(training, count, seed)
        return measure(logits.argmax(1), self.test.labels, len(self.test.classes))

    def _logits(self, training: _Training, count: int, seed: int) -> torch.Tensor:
        # The probe has nothing random in it: one training serves all seeds that see the same images.
        seed = 0 if self.protocol == "probe" else seed
        steps = recipe_steps(self.protocol, count, self.steps)
        key = fingerprint(
            VERSION, training.key, self.test.fingerprint(), self.protocol, self.network, self.size, seed, steps
        )
        path = self.store and self.store / f"{training.name}-{seed}-{key[:16]}.safetensors"
        logits = self.memo.get(key)
        if logits is None:
            logits = _read_logits(path, (len(self.test), len(self.test.classes)))
        if logits is None:
            logits = self._train(training, seed)
            _write(path, save({"logits": logits, "labels": self.test.labels}, {"key": key}))
        return self.memo.setdefault(key, logits)

    def _train(self, training: _Training, seed: int) -> torch.Tensor:
        images, labels = training.read()
        report = self.progress
        return train_and_predict(
            self.protocol,
            self.network,
            images,
            labels,
            self.test.pixels(size=self.size),
            classes=len(self.test.classes),
            seed=seed,
            steps=self.steps,
            progress=None if report is None else lambda done, of: report(f"{training.name}, seed {seed}", done, of),
        )

    def nearness(self, subject: DistilledSet, key: str) -> Nearness:
        name = fingerprint(VERSION, key, self.train.fingerprint(), self.test.fingerprint(), self.size)
        # Beside the protocols' folders: it depends on none of them.
        path = self.store and self.store.parent / f"nearness-{name[:16]}.json"
        if path and path.is_file():
            return Nearness(**json.loads(path.read_text()))
        train, held_out = self.train.pixels(size=self.size), self.test.pixels(size=self.size)
        found = nearness_ratio(subject.images, train, held_out)
        _write(path, json.dumps(asdict(found), indent=2).encode())
        return found

    def record(self, result: Evaluation, key: str) -> None:
        """Write the figures beside the predictions that they follow from."""
        name = fingerprint(VERSION, key, list(result.seeds), self.steps, bool(result.full))
        text = json.dumps(result.as_dict(), indent=2, sort_keys=True)
        _write(self.store and self.store / f"figures-{name[:16]}.json", text.encode())


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise ConfigError(f"seeds is {seeds}: give at least 1")
    return chosen


def _sized(distilled: DistilledSet | Path | str, size: int | None) -> DistilledSet:
    if not isinstance(distilled, DistilledSet):
        return DistilledSet.load(distilled, size=size)
    if size not in (None, distilled.size):
        raise ConfigError(f"the distilled images are {distilled.size} px, size is {size}: leave size out")
    return distilled


def _check_classes(distilled: DistilledSet, data: SceneData) -> Scenes:
    """Return the test scenes; all three sets have the same classes, which are sorted, so labels agree as well."""
    if data.test is None or not len(data.test):
        raise SceneError("the data has no test images: add test/<class>/<image> beside train")
    ours, theirs = set(distilled.classes), set(data.train.classes)
    if theirs - ours:
        raise SceneError(f"the distilled set has no class {min(theirs - ours)!r}, which the data has: distil it again")
    if ours - theirs:
        raise SceneError(f"the data has no class {min(ours - theirs)!r}, which the distilled set has: use its own data")
    present = {data.test.classes[label] for label in data.test.labels.tolist()}
    if ours - present:
        raise SceneError(f"the test images have no class {min(ours - present)!r}: add test images of it")
    return data.test


def _random_real(train: Scenes, distilled: DistilledSet, seed: int) -> Scenes:
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


def _hash(distilled: DistilledSet) -> str:
    digest = hashlib.sha256(json.dumps([list(distilled.images.shape), distilled.labels.tolist()]).encode())
    digest.update(distilled.images.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _store(out: Path | str | None, protocol: str, network: str) -> Path | None:
    if out is None:
        return None
    if (Path(out) / MANIFEST).is_file():
        raise ConfigError(f"{out} is a distilled set, where every folder is a class: choose another folder for results")
    folder = Path(out) / "evaluation" / f"{protocol}-{network}"
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _read_logits(path: Path | None, shape: tuple[int, int]) -> torch.Tensor | None:
    """Return stored logits, or None where there are none or the file is damaged: then they are made anew."""
    if path is None or not path.is_file():
        return None
    try:
        logits = load(path.read_bytes())["logits"]
    except (SafetensorError, KeyError):
        return None
    return logits if logits.shape == shape else None


def _write(path: Path | None, content: bytes) -> None:
    if path is not None:
        with explain_os_errors(path.parent):
            write_atomic(path, content)


def summary_table(result: Evaluation) -> Table:
    """Return the comparison as a rich table: a row for each training set, figures in per cent."""
    seeds = f"{len(result.seeds)} seed{'s' if len(result.seeds) > 1 else ''}"
    table = Table(title=f"{result.protocol}, {result.network}, {result.size} px, {seeds}", caption=_caption(result))
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
        table.add_row(result.classes[label], *(f"{100 * means[label]:.1f}" for means in shown.values()))
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
    near = result.nearness
    parts.append(
        f"nearness ρ {near.ratio:.2f} (pixel {near.pixel:.2f}, feature {near.feature:.2f}; 1: fresh, 0: copies)"
    )
    return "; ".join(parts)
