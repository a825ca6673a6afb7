"""Where the time and the memory of a run went, and which setting would halve the largest part."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from geodistill.commands.source import recorded_part
from geodistill.config import Config, read_recorded
from geodistill.distilled import MANIFEST
from geodistill.errors import ConfigError
from geodistill.pipeline import (
    ADAPTER,
    BASE,
    CANDIDATES,
    DISTILLED,
    FOLLOWING,
    LATENTS,
    REFINED,
    SCREENED,
    SELF_TEST,
    SOFT_LABEL_TEACHER,
    TEACHER,
    words_of,
)
from geodistill.run import records

# A stage with a smaller share of the time is not worth a change.
_WORTH = 0.1
# The setting that a stage's time is proportional to. Half of it halves the time.
_HALVED = {
    BASE.name: ("compact", "steps"),
    LATENTS.name: ("latents", "views"),
    TEACHER.name: ("teacher", "steps"),
    ADAPTER.name: ("finetune", "steps"),
    CANDIDATES.name: ("sampling", "candidates"),
    SCREENED.name: ("sampling", "candidates"),
    REFINED.name: ("refinement", "steps"),
}
# What leaves a stage out.
_WITHOUT = {
    SOFT_LABEL_TEACHER.name: "leaving --soft-labels out",
    SELF_TEST.name: "--set self_test.held_out=0",
}
# From this share of a refinement's time on, its classifiers are what to shorten.
_MOSTLY = 0.5
# The setting that the largest part of a stage's memory is proportional to.
_BATCHES = {
    BASE.name: ("compact", "batch"),
    ADAPTER.name: ("finetune", "batch"),
    FOLLOWING.name: ("sampling", "batch"),
    CANDIDATES.name: ("sampling", "batch"),
    SCREENED.name: ("sampling", "batch"),
}


@dataclass(frozen=True)
class Advice:
    """A stage of a run: its seconds, its share of the whole time, and what to set to make it shorter, "" if nothing."""

    stage: str
    seconds: float
    share: float
    change: str


@dataclass(frozen=True)
class Profile:
    """Where a run's time and memory went.

    seconds: of all stages. stages: those with a tenth of it or more, the longest first. peak: the largest memory in
    MiB, the stage that used it, and what to set for less, "" if nothing.
    """

    seconds: float
    stages: tuple[Advice, ...]
    peak: tuple[int, str, str]

    def lines(self) -> Iterable[str]:
        """Yield the profile in sentences."""
        for one in self.stages:
            told = f": {one.change}" if one.change else ""
            yield f"{words_of(one.stage)} took {one.seconds:.0f} s, {100 * one.share:.0f} % of the time{told}"
        memory, stage, change = self.peak
        yield f"the largest memory, {memory} MiB, was that of {words_of(stage)}" + (f": {change}" if change else "")


def profile(run: Path | str, config: Config) -> Profile:
    """Return where the time and the memory of the finished run in folder `run` went; `config` are its settings.

    Where the run's method has settings of its own, as its set states, these count.

    >>> import geodistill, tempfile
    >>> data = geodistill.builtin_scenes(train_per_class=12, test_per_class=3, size=32)
    >>> out, config = tempfile.mkdtemp(), geodistill.load_config("tiny", ["self_test.held_out=0"])
    >>> _ = geodistill.distill(data.train, config, out=out)
    >>> 0 < sum(one.share for one in profile(out, config).stages) <= 1
    True
    """
    found, config = records(Path(run)), _used(Path(run), config)
    total = sum(record["wall_seconds"] for record in found)
    longest = sorted(found, key=lambda record: -record["wall_seconds"])
    shares = [(one, one["wall_seconds"] / total) for one in longest]
    stages = tuple(
        Advice(one["stage"], one["wall_seconds"], share, _shorter(one, config, share))
        for one, share in shares
        if share >= _WORTH
    )
    largest = max(found, key=lambda record: record["peak_memory_mib"])
    name = largest["stage"]
    return Profile(total, stages, (largest["peak_memory_mib"], name, _smaller(name, config)))


def _used(run: Path, config: Config) -> Config:
    """Return the settings in the manifest of the run's set, or `config` if there is none, with the views it stored."""
    about = recorded_part(run / DISTILLED.name / MANIFEST, "about")
    with suppress(ConfigError):
        config = read_recorded(about["config"]) if "config" in about else config
    # Of many scenes fewer views are stored than the setting says.
    stored = run / LATENTS.name / f"{LATENTS.name}.safetensors"
    if not stored.is_file():
        return config
    with safe_open(stored, "pt") as file:
        views = file.get_slice(LATENTS.name).get_shape()[1]
    return config.model_copy(update={"latents": config.latents.model_copy(update={"views": views})})


def _shorter(record: dict[str, Any], config: Config, share: float) -> str:
    """Return what shortens the stage of `record`, which has `share` of the time; "" if nothing is known."""
    stage, facts = record["stage"], record["facts"] or {}
    if stage == FOLLOWING.name:
        return f"{_strength(facts)} saves {100 * share:.0f} % of the time"
    if stage in _WITHOUT:
        return f"{_WITHOUT[stage]} saves {100 * share:.0f} % of the time"
    taught = facts.get("students_seconds", 0.0) / record["wall_seconds"] if stage == REFINED.name else 0.0
    rounds = config.refinement.rounds
    if taught >= _MOSTLY and rounds > 1:
        less = 100 * share * taught * (1 - 1 / rounds)
        return f"--set refinement.rounds=1 (now {rounds}) would save about {less:.0f} % of the time"
    setting = _half(_HALVED.get(stage), config)
    return f"{setting} would save about {50 * share * (1 - taught):.0f} % of the time" if setting else ""


def _strength(facts: dict[str, Any]) -> str:
    """Return the options that set what the sampling-strength test chose."""
    closely = "--set sampling.strength=0.4 --set sampling.guidance=1.5"
    return closely if facts.get("closely") else "--set sampling.strength=0.6"


def _smaller(stage: str, config: Config) -> str:
    if stage == REFINED.name:
        return "it takes what is free, up to a half, and needs less"
    setting = _half(_BATCHES.get(stage), config)
    return f"{setting} would halve what its batches need" if setting else ""


def _half(place: tuple[str, str] | None, config: Config) -> str:
    """Return the option that halves the setting at `place`, or "" without one, or if its value is 1 or less."""
    if place is None:
        return ""
    section, name = place
    value: Any = getattr(getattr(config, section), name)
    return f"--set {section}.{name}={value // 2} (now {value})" if value >= 2 else ""
