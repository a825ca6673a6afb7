"""The stages that methods are lines of: each is a folder of the run that holds all that the next ones need.

`after` names the stages that a call's arguments come from; their fingerprints go into its own. None in it stands for
a stage that the settings leave out.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from geodistill.config import Config, FinetuneSettings
from geodistill.descriptions import (
    Conversations,
    MeasuredDescriber,
    TemplateDescriber,
    class_prompt,
    make_describer,
    shortened,
)
from geodistill.devices import compile_in_place
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError, PrivacyError, SceneError
from geodistill.evaluation.labeller import VERSION as LABELLER_VERSION
from geodistill.evaluation.labeller import load_labeller, save_labeller, soft_labels, train_labeller
from geodistill.evaluation.networks import backbone_features
from geodistill.evaluation.protocols import recipe_steps
from geodistill.methods import METHODS
from geodistill.prior.base import Prior, check_size, fingerprint_of_base, load_prior, source_of
from geodistill.prior.catalogue import SCRATCH, read_facts, tell_terms
from geodistill.prior.compact import Archive, build_compact, check_compact_size
from geodistill.prior.finetune import add_adapter, free_all, merge_adapter, save_adapter, save_whole, trains_all
from geodistill.prior.guidance import ModeGuidance
from geodistill.prior.sample import Requests, sample
from geodistill.prior.training import (
    TrainingData,
    TrainingPlan,
    batches,
    forget_checkpoint,
    prompt_table,
    train_denoiser,
)
from geodistill.privacy.copies import are_copies, find_copies
from geodistill.privacy.overlap import sign, told_overlap
from geodistill.processes import processes
from geodistill.progress import progress
from geodistill.prototypes import Prototypes, find_centroids, find_prototypes, latent_features
from geodistill.run import Run, forget_parts, join_parts, make_parts, save_tensors, stage_of, versions, write_atomic
from geodistill.scenes.scenes import Scenes
from geodistill.scenes.splits import hold_out
from geodistill.scenes.views import dihedral
from geodistill.seeding import derive_secret, derive_seed, generator
from geodistill.selection import by_coverage, by_margin, herd
from geodistill.teacher import Teacher, judge, load_teacher, train_teacher

log = logging.getLogger("geodistill")

# Noise of a candidate depends on its prototype and its rank alone, so that drawing more changes none drawn before.
MOST_CANDIDATES = 10_000
# Members nearest the prototype that a description is made from.
_DESCRIBED = 16
# Versions of the code of stages `latents` and `features`.
_LATENTS, _FEATURES = 2, 1
_LABELLER = "labeller.safetensors"
_CHOSEN = "chosen.safetensors"
# Positions of latents, for each thread, from which an adaptation on a CPU is compiled. Compiling takes three minutes. A
# step of the compact U-Net then takes 0.46 in place of 0.95 s on one thread, but 0.40 in place of 0.58 s on two.
_WORTH_COMPILING = 4_000_000
# Scenes whose views are encoded together.
_ENCODED_TOGETHER = 100
# Scenes decoded together where their features are asked for.
_READ_TOGETHER = 1024


def check_counts(scenes: Scenes, ipc: int, privacy: str = "none") -> None:
    """Raise SceneError, before anything is computed, for a class with fewer than `ipc` images.

    Not under differential privacy, where that would tell how many there are: noisy means are there of any number.
    """
    if privacy == "dp":
        return
    counts = torch.bincount(scenes.labels, minlength=len(scenes.classes))
    for name, count in zip(scenes.classes, counts.tolist(), strict=True):
        if count < ipc:
            raise SceneError(
                f"class '{name}' has {count} images, IPC {ipc} needs at least {ipc}: lower --ipc or add images"
            )


def check_base(config: Config) -> None:
    """Raise PriorError, before anything is computed, where the base is not there or does not draw the config's size."""
    if config.base == SCRATCH:
        check_compact_size(config.size)
    else:
        source_of(config.base, config.size)


def tell_of_base(scenes: Scenes, config: Config, run: Run) -> None:
    """Log, where `run` is new, the terms of its base and how many of `scenes` the base was trained on."""
    # A base built in the run is trained on the scenes, and on nothing else.
    if not run.new or config.base == SCRATCH:
        return
    folder = Path(source_of(config.base, config.size))
    tell_terms(folder)
    overlap = told_overlap(scenes.keys, folder)
    if overlap:
        log.warning("%s: its figures flatter", overlap)


def make_base(scenes: Scenes, config: Config, run: Run) -> Prior:
    """Return the prior: the package's own, one built from the scenes in stage `base`, or any other.

    Raises ConfigError where a class's name alone makes a prompt over its token limit.
    """
    prior = _load(str(train_base([Source(scenes)], config, run)) if config.base == SCRATCH else config.base, config)
    for name in scenes.classes:
        if not prior.fits(class_prompt(name)):
            raise ConfigError(
                f"the prompt of class {name!r} has {prior.tokens(class_prompt(name))} tokens, the base's text encoder "
                f"takes {prior.token_limit}: give the class's folder a shorter name"
            )
    return prior


def _load(source: str, config: Config) -> Prior:
    prior = load_prior(source_of(source, config.size), config.precision)
    check_size(prior, config.size)
    return prior


@dataclass(frozen=True)
class Source:
    """An archive that a base is trained on.

    weight: its share of every batch, relative to those of other sources. labelled: whether its class names mean
    something; without, a scene is described by what can be measured in it alone. name, terms: for the model card.
    """

    scenes: Scenes
    weight: float = 1.0
    labelled: bool = True
    name: str = ""
    terms: str = ""


def train_base(sources: Sequence[Source], config: Config, run: Run, start: str | None = None) -> Path:
    """Return the folder of a base built from the sources alone in stage `base`, or there trained on from base `start`.

    Raises:
        PriorError: `start` is not to be had or does not draw images of the config's size.
    """
    given = None if start is None else _load(start, config)

    def build(folder: Path) -> dict[str, Any]:
        facts = build_compact(
            [_archive(source, config) for source in sources],
            config.compact,
            seed=config.seed,
            folder=folder,
            start=given,
        )
        archives = [(source.name, source.scenes.keys) for source in sources]
        # Beside the base, which may be handed out.
        sign(folder.parent, archives, None if given is None else Path(given.source))
        return facts

    inputs: list[Any] = [source.scenes.fingerprint() for source in sources]
    inputs += [config.compact.model_dump(), config.size, config.seed]
    if len(sources) > 1 or not sources[0].labelled:
        inputs.append([[source.weight, source.labelled] for source in sources])
    if given is not None:
        inputs.append(fingerprint_of_base(given.source))
    return run.stage("base", build, version=3, inputs=inputs)


def _archive(source: Source, config: Config) -> Archive:
    """Return what a base learns from: pixels, and texts of each scene, by its class and by what is measured in it."""
    scenes = source.scenes
    pixels = scenes.pixels(size=config.size)
    names = [scenes.classes[label] for label in scenes.labels]
    if source.labelled:
        texts = [TemplateDescriber().each(pixels, names), MeasuredDescriber().each(pixels, names)]
    else:
        texts = [MeasuredDescriber().unnamed(pixels)]
    prompts = [list(row) for row in zip(*texts, strict=True)]
    # Each scene has as many texts as one with a class.
    prompts = [row * (2 // len(row)) for row in prompts]
    return Archive(pixels, scenes.labels, prompts, _larger(scenes, config), source.weight)


def _larger(scenes: Scenes, config: Config) -> Tensor | None:
    """Return the scenes with up to `compact.zoom` times as many pixels along a side, for a long training alone."""
    zoom = max(config.compact.zoom, 2.0 if config.compact.doubled else 1.0)
    side = min(scenes.typical_side(), round(zoom * config.size))
    if config.compact.autoencoder == "linear" or side <= config.size:
        return None
    return scenes.pixels(size=side)


def encode(scenes: Scenes, prior: Prior, config: Config, run: Run) -> Tensor:
    """Return the scenes' latents, float16 [N, V, C, h, w] with V views of each scene, from stage `latents`."""

    def views(which: slice) -> Tensor:
        pixels = ahead(which)
        return torch.stack([prior.encode(dihedral(pixels, view)).half() for view in range(config.latents.views)], dim=1)

    def build(folder: Path) -> None:
        paths = make_parts("latents", batches(len(scenes), _ENCODED_TOGETHER), views, folder)
        if processes().main:
            join_parts(paths, "latents", folder / "latents.safetensors")
            forget_parts(folder)

    ahead = _Ahead(scenes, config.size)
    inputs = _inputs_of_latents(scenes, config, prior.source)
    stage = run.stage("latents", build, version=_LATENTS, inputs=inputs, shared=True)
    latents: Tensor = load_file(stage / "latents.safetensors")["latents"]
    return latents


def _inputs_of_latents(scenes: Scenes, config: Config, base: str) -> list[Any]:
    inputs = [scenes.fingerprint(), fingerprint_of_base(base), config.size, config.latents.views]
    return inputs + unless_default(config.precision)


def reuse_encoded(folder: Path, scenes: Scenes, part: Tensor, config: Config, run: Run) -> None:
    """Make stages `latents` and `features` of `run`, a run of some of `scenes`, from those of the run in `folder`.

    `folder` holds a run of all scenes with the same settings; `part` int64 [k] are those of `run`. Stages that are not
    in `folder` are left to be made. A base that is built from the scenes depends on them, and so do its latents.
    """
    own = scenes.subset(part)

    def reuse(name: str, version: int, of_all: list[Any], of_part: list[Any]) -> None:
        given, file = stage_of(folder, name, version=version, inputs=of_all), f"{name}.safetensors"
        if given is None:
            return
        whole: Tensor = load_file(given / file)[name]
        run.stage(name, lambda out: save_tensors({name: whole[part]}, out / file), version=version, inputs=of_part)

    reuse("features", _FEATURES, _inputs_of_features(scenes, config), _inputs_of_features(own, config))
    # Some methods have no latents. Their base may not exist, or may not draw this size.
    if config.base != SCRATCH and (folder / "latents").is_dir():
        base = source_of(config.base, config.size)
        reuse("latents", _LATENTS, *(_inputs_of_latents(some, config, base) for some in (scenes, own)))


class _Ahead:
    """Decodes the images that come next while those before are encoded."""

    def __init__(self, scenes: Scenes, size: int) -> None:
        self._scenes, self._size, self._thread = scenes, size, ThreadPoolExecutor(1)
        self._begun: dict[int, Future[Tensor]] = {}

    def __call__(self, which: slice) -> Tensor:
        """Return uint8 [n, 3, s, s], the scenes at `which`."""
        own = self._begun.pop(which.start, None) or self._begin(which.start)
        following = which.start + _ENCODED_TOGETHER * processes().count
        if following < len(self._scenes):
            self._begun[following] = self._begin(following)
        return own.result()

    def _begin(self, start: int) -> "Future[Tensor]":
        chosen = range(start, min(start + _ENCODED_TOGETHER, len(self._scenes)))
        return self._thread.submit(self._scenes.pixels, chosen, size=self._size)


def teach(latents: Tensor, scenes: Scenes, config: Config, run: Run) -> Teacher:
    """Return the frozen teacher from stage `teacher`."""

    def build(folder: Path) -> dict[str, Any]:
        _, held = hold_out(scenes, config.teacher.held_out, "teacher")
        return train_teacher(
            latents,
            scenes.labels,
            held,
            config.teacher,
            seed=config.seed,
            folder=folder,
            precision=config.precision,
        )

    inputs = [run.fingerprint_of("latents"), config.teacher.model_dump(), config.seed]
    return load_teacher(run.stage("teacher", build, version=1, inputs=inputs))


def label(scenes: Scenes, config: Config, run: Run) -> nn.Module | None:
    """Return the labeller from stage `labeller`, or None where no soft labels are asked for."""
    if not config.soft_labels:
        return None

    def build(folder: Path) -> None:
        with progress("labeller", recipe_steps("finetune", len(scenes), None)) as advance:
            network = train_labeller(scenes, config.size, progress=lambda done, of: advance(done))
        save_labeller(network, folder / _LABELLER)

    stage = run.stage("labeller", build, version=LABELLER_VERSION, inputs=[scenes.fingerprint(), config.size])
    return load_labeller(stage / _LABELLER, len(scenes.classes))


def cluster(latents: Tensor, scenes: Scenes, config: Config, run: Run) -> Prototypes:
    """Return the prototypes from stage `prototypes`."""

    if config.prototypes.features == "latent":
        features = latent_features(latents[:, 0].float())
    else:
        features = scene_features(scenes, config, run)

    def build(folder: Path) -> None:
        find_prototypes(features, scenes.labels, per_class=config.ipc, seed=config.seed, classes=scenes.classes).save(
            folder
        )

    inputs = [run.fingerprint_of("latents"), config.prototypes.model_dump(), config.ipc, config.seed]
    return Prototypes.load(run.stage("prototypes", build, version=1, inputs=inputs))


def centroids(latents: Tensor, scenes: Scenes, config: Config, run: Run) -> Tensor:
    """Return float32 [classes * IPC, C, h, w]: k-means centroids of the latents, in place of stage `prototypes`."""

    def build(folder: Path) -> None:
        found = find_centroids(
            latents[:, 0], scenes.labels, classes=scenes.classes, per_class=config.ipc, seed=config.seed
        )
        save_tensors({"centroids": found}, folder / "centroids.safetensors")

    inputs = ["centroids", run.fingerprint_of("latents"), config.ipc, config.seed]
    stage = run.stage("prototypes", build, version=1, inputs=inputs)
    found: Tensor = load_file(stage / "centroids.safetensors")["centroids"]
    return found


def scene_features(scenes: Scenes, config: Config, run: Run) -> Tensor:
    """Return float32 [N, 1280]: the pretrained backbone's features of all scenes, of unit length, from `features`."""

    def build(folder: Path) -> None:
        parts = []
        with progress("features", len(scenes)) as advance:
            for which in batches(len(scenes), _READ_TOGETHER):
                parts.append(backbone_features(scenes.pixels(range(which.start, which.stop), size=config.size)))
                advance(which.stop)
        save_tensors({"features": torch.cat(parts)}, folder / "features.safetensors")

    stage = run.stage("features", build, version=_FEATURES, inputs=_inputs_of_features(scenes, config))
    found: Tensor = load_file(stage / "features.safetensors")["features"]
    return found


def _inputs_of_features(scenes: Scenes, config: Config) -> list[Any]:
    return [scenes.fingerprint(), config.size]


def describe(prior: Prior, prototypes: Prototypes, scenes: Scenes, config: Config, run: Run) -> list[str]:
    """Return one description for each prototype from stage `descriptions`, none over the prior's token limit.

    Where a model writes them, all that was asked and answered is kept in the stage's folder.
    """

    def build(folder: Path) -> dict[str, Any]:
        describer = make_describer(config.descriptions.describer, config.precision)
        log = Conversations(folder)
        with progress("descriptions", len(prototypes)) as advance:
            for rank, (label, members) in enumerate(zip(prototypes.labels, prototypes.members, strict=True)):
                name = scenes.classes[label]
                if rank == len(log.kept):
                    found = describer(scenes.pixels(members[:_DESCRIBED], size=config.size), name)
                    log.add(shortened(found, prior.fits, name))
                advance(rank + 1)
        texts = [one.text for one in log.kept]
        write_atomic(folder / "descriptions.json", json.dumps(texts, indent=1, ensure_ascii=False))
        return log.outcomes()

    inputs = [run.fingerprint_of("prototypes"), config.descriptions.model_dump(), config.size]
    stage = run.stage("descriptions", build, version=1, inputs=inputs)
    texts: list[str] = json.loads((stage / "descriptions.json").read_text(encoding="utf-8"))
    return texts


def texts_of_each(prototypes: Prototypes, texts: list[str], scenes: Scenes) -> list[list[str]]:
    """Return for each training scene what the U-Net is told of it: its cluster's description, and its class."""
    own = [""] * len(scenes)
    for text, members in zip(texts, prototypes.members, strict=True):
        for member in members.tolist():
            own[member] = text
    return [[text, prompt] for text, prompt in zip(own, class_prompts(scenes, scenes.labels), strict=True)]


def class_prompts(scenes: Scenes, labels: Tensor) -> list[str]:
    """Return the class prompt of each of `labels`, int64 [n]."""
    prompts = [class_prompt(name) for name in scenes.classes]
    return [prompts[label] for label in labels.tolist()]


def slot_labels(scenes: Scenes, config: Config) -> Tensor:
    """Return int64 [classes * IPC]: the class of each image of the set to be, IPC of a class side by side."""
    return torch.arange(len(scenes.classes)).repeat_interleave(config.ipc)


def finetune(
    prior: Prior,
    latents: Tensor,
    scenes: Scenes,
    texts: list[list[str]],
    config: Config,
    run: Run,
    *,
    after: Sequence[str | None],
    teacher: Teacher | None = None,
    auxiliary: nn.Module | None = None,
) -> None:
    """Train the adapter in stage `adapter` and merge it into `prior`; with 0 steps the base stays as it is.

    `texts` has the prompts of each scene, as many of each: a step takes one of them. `teacher` gives the consistency
    loss, `auxiliary` a further one that remembers (see TrainingPlan); its representation says all that its values
    depend on.
    """
    settings = config.finetune
    if not settings.steps:
        return

    def build(folder: Path) -> dict[str, Any]:
        adapted = replace(prior, unet=deepcopy(prior.unet))
        whole = trains_all(prior.unet, settings)
        if whole:
            free_all(adapted)
            enough = _WORTH_COMPILING * torch.get_num_threads()
            if prior.device.type == "cpu" and _positions(latents, settings) >= enough:
                compile_in_place(adapted.unet)
        else:
            add_adapter(adapted, rank=settings.rank, seed=config.seed)
        table, rows = prompt_table(texts)
        data = TrainingData(latents, scenes.labels, rows, adapted.embed(table))
        options = settings.model_dump(exclude={"rank", "weights"})
        plan = TrainingPlan(
            seed=derive_seed(config.seed, "adapter"),
            teacher=teacher,
            auxiliary=auxiliary,
            working=prior.working,
            shared=True,
            **options,
        )
        facts = train_denoiser(adapted.unet, adapted.scheduler, data, plan, folder, "adapter")
        if processes().main:
            (save_whole if whole else save_adapter)(adapted, folder)
            forget_checkpoint(folder)
        return facts | {"weights": "all" if whole else "lora"}

    inputs = [*fingerprints(run, after), settings.model_dump(), config.seed]
    inputs += [] if auxiliary is None else [repr(auxiliary)]
    inputs += unless_default(config.precision)
    merge_adapter(prior, run.stage("adapter", build, version=3, inputs=inputs, shared=True))


def _positions(latents: Tensor, settings: FinetuneSettings) -> int:
    """Return through how many positions of latents [N, V, C, h, w] an adaptation goes, all steps together."""
    return settings.steps * settings.batch * latents[0, 0, 0].numel()


def draw(
    prior: Prior,
    prototypes: Tensor,
    texts: list[str],
    config: Config,
    run: Run,
    *,
    after: Sequence[str | None],
    modes: ModeGuidance | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """Return candidates, float32 [P * R, C, h, w] with the R of a slot side by side, from stage `candidates`.

    `prototypes` float [P, C, h, w] and `texts` [P] are what each slot's candidates follow; with `starts` int64 [P * R],
    candidate k follows row starts[k] of `prototypes`, of which there may be any number. With `modes` they are followed
    as MGD3 does.
    """

    def build(folder: Path) -> dict[str, Any]:
        requests = requests_for(prior, prototypes, texts, config, starts=starts)
        seed = seed_of_noise("candidates", config, run)
        drawn = sample(prior, requests, config.sampling, seed=seed, folder=folder, modes=modes)
        if processes().main:
            save_tensors({"latents": drawn}, folder / "candidates.safetensors")
            forget_parts(folder)
        return {"images": len(drawn)}

    inputs = [*fingerprints(run, after), config.sampling.model_dump(), config.seed]
    inputs += [] if modes is None else [asdict(modes)]
    inputs += unless_default(config.precision)
    stage = run.stage("candidates", build, version=1, inputs=inputs, shared=True)
    candidates: Tensor = load_file(stage / "candidates.safetensors")["latents"]
    return candidates


def requests_for(
    prior: Prior,
    prototypes: Tensor,
    texts: list[str],
    config: Config,
    *,
    starts: Tensor | None,
    noisy: Tensor | None = None,
) -> Requests:
    """Return what `draw` asks for: as many images for each of `texts` as there are to be candidates, side by side.

    `noisy` float [P]: of noise in the prototypes already (see `Requests`).
    """
    table, rows = prompt_table([[text] for text in texts])
    slots = torch.arange(len(texts)).repeat_interleave(config.sampling.candidates)
    ranks = torch.arange(config.sampling.candidates).repeat(len(texts))
    return Requests(
        prompts=rows[slots, 0],
        embeddings=prior.embed(table),
        prototypes=prototypes,
        slots=slots if starts is None else starts,
        seeds=slots * MOST_CANDIDATES + ranks,
        noisy=noisy,
    )


def drawn_in_secret(config: Config, secret: bytes) -> Config:
    """Return `config` with a seed that follows from the run's secret.

    What is drawn after the adapter takes it: which scenes candidates start from, their order, the refinement. Whoever
    knows the base and tries all public seeds cannot repeat it.
    """
    return config.model_copy(update={"seed": derive_seed(int.from_bytes(secret), "draws")})


def seed_of_noise(what: str, config: Config, run: Run, index: int = 0) -> int | bytes:
    """Return the seed of the noise that images are drawn from in stage `what`: a secret unless reproducible."""
    return noise_seed(what, index, config.seed, None if config.reproducible else run.secret())


def noise_seed(what: str, index: int, seed: int, secret: bytes | None) -> int | bytes:
    """Return the seed of noise `index` of stage `what`, derived from the run's `secret`, or from `seed` without one."""
    if secret is None:
        return derive_seed(seed, what, index)
    return derive_secret(secret, f"{what} {index}")


def unless_default(precision: str) -> list[str]:
    """Return what a stage's fingerprint says of the precision."""
    return [] if precision == "auto" else [precision]


def fingerprints(run: Run, stages: Iterable[str | None]) -> list[str | None]:
    """Return those of the stages, None for one that the settings leave out."""
    return [run.fingerprint_of(stage) if stage else None for stage in stages]


@dataclass(frozen=True)
class Chosen:
    """What DPD hands out before it is decoded: IPC candidates of each class, side by side.

    rows: int64 [n], which of all candidates. latents: float32 [n, C, h, w]. logits: float32 [n, classes], the
    teacher's.
    """

    rows: Tensor
    latents: Tensor
    logits: Tensor

    @classmethod
    def load(cls, folder: Path) -> "Chosen":
        """Return what `save` wrote into `folder`."""
        return cls(**load_file(folder / _CHOSEN))

    def save(self, folder: Path) -> None:
        """Write it into `folder`."""
        save_tensors({"rows": self.rows, "latents": self.latents, "logits": self.logits}, folder / _CHOSEN)


def choose(
    candidates: Tensor,
    latents: Tensor,
    prior: Prior,
    teacher: Teacher,
    scenes: Scenes,
    prototypes: Prototypes,
    config: Config,
    run: Run,
    *,
    passing: Tensor | None = None,
) -> Chosen:
    """Return as many of the candidates as there are prototypes, from stage `chosen`.

    `passing` bool [n]: candidates that have passed the screening, whose copies are left out too; all where None.
    """
    known = scene_features(scenes, config, run) if config.selection.by == "herding" else None

    def build(folder: Path) -> None:
        slots = torch.arange(len(prototypes)).repeat_interleave(config.sampling.candidates)
        logits, features = judge(teacher, candidates)
        real = judge(teacher, latents[:, 0])[1]
        if known is not None:
            # Two judges that were trained on other things are harder to please for a wrong reason.
            seen = backbone_features(decode(prior, candidates, config, draft=True))
            features = torch.cat([features, seen], dim=1)
            real = torch.cat([real, known], dim=1)
        free = torch.ones(len(candidates), dtype=torch.bool) if passing is None else passing

        def chosen_of(free: Tensor) -> Tensor:
            return torch.cat(
                [
                    _choose_of_class(label, logits, features, real, slots, free, scenes, prototypes, config)
                    for label in range(len(scenes.classes))
                ]
            )

        rows = chosen_of(free)
        if passing is not None:
            train = scenes.pixels(size=config.size)
            while (copied := are_copies(find_copies(decode(prior, candidates[rows], config), train))).any():
                free = free.index_fill(0, rows[copied], False)
                rows = chosen_of(free)
        if not config.reproducible:
            rows = _shuffled(rows, config)
        Chosen(rows, candidates[rows], logits[rows]).save(folder)

    drawn = "candidates" if passing is None else "screened"
    inputs = [run.fingerprint_of(drawn), run.fingerprint_of("teacher"), config.selection.model_dump()]
    return Chosen.load(run.stage("chosen", build, version=1, inputs=inputs))


def _shuffled(rows: Tensor, config: Config) -> Tensor:
    """Return `rows` with those of each class in a random order: their places tell nothing of prototypes and choice."""
    own = rows.view(-1, config.ipc)
    orders = [torch.randperm(config.ipc, generator=generator(config.seed, "order", label)) for label in range(len(own))]
    return own.gather(1, torch.stack(orders)).flatten()


def hand_out(
    chosen: Chosen, prior: Prior, scenes: Scenes, texts: list[str], config: Config, run: Run, *, after: str
) -> DistilledSet:
    """Return the distilled set of DPD from stage `distilled`; `after` is the stage that its latents come from."""
    labeller = label(scenes, config, run)

    def build(folder: Path) -> None:
        images, labels = decode(prior, chosen.latents, config), slot_labels(scenes, config)
        records = describe_images(chosen.rows, labels, chosen.logits, texts, config)
        if labeller is not None:
            soft = soft_labels(labeller, images).double().round(decimals=4).tolist()
            records = tuple({**record, "soft_label": own} for record, own in zip(records, soft, strict=True))
        facts = about("dpd", config) | ({"screened": True} if config.privacy == "screen" else {})
        DistilledSet(images, labels, scenes.classes, records, facts).write(folder)

    inputs = [run.fingerprint_of(after)]
    inputs += [] if labeller is None else [run.fingerprint_of("labeller")]
    return DistilledSet.load(run.stage("distilled", build, version=5, inputs=inputs))


def _choose_of_class(
    label: int,
    logits: Tensor,
    features: Tensor,
    real: Tensor,
    slots: Tensor,
    free: Tensor,
    scenes: Scenes,
    prototypes: Prototypes,
    config: Config,
) -> Tensor:
    """Return which of the `free` candidates, bool [n], stand for class `label`, as rows of all candidates.

    Raises PrivacyError where there are too few.
    """
    own = ((prototypes.labels[slots] == label) & free).nonzero()[:, 0]
    if len(own) < config.ipc:
        raise PrivacyError(
            f"class {scenes.classes[label]!r}: {len(own)} candidates keep away from the training images, {config.ipc} "
            "are needed: draw more (sampling.candidates) or follow prototypes less (sampling.strength)"
        )
    if config.selection.by == "margin":
        return own[by_margin(logits[own], label, slots[own])]
    if config.selection.by == "herding":
        return own[herd(features[own], config.ipc, real[scenes.labels == label].mean(dim=0))]
    if config.selection.by == "coverage":
        return own[by_coverage(features[own], real[scenes.labels == label], slots[own])]
    return own[:: config.sampling.candidates]


def describe_images(
    chosen: Tensor, labels: Tensor, logits: Tensor | None, texts: list[str], config: Config
) -> tuple[dict[str, Any], ...]:
    """Return what is told of each of the `chosen` candidates, int64 [n]; nothing that names a source scene.

    Where each was drawn from is told of a reproducible set alone. `logits` [n, classes] are the teacher's of these, if
    there is one, `texts` the descriptions of the slots.
    """
    sure = [None] * len(labels) if logits is None else logits.softmax(dim=1).gather(1, labels[:, None])[:, 0].tolist()
    slots = torch.arange(len(texts)).repeat_interleave(config.sampling.candidates)

    def origin(index: int) -> dict[str, int]:
        slot, candidate = int(slots[index]), index % config.sampling.candidates
        seed = slot * MOST_CANDIDATES + candidate
        return {"prototype": slot % config.ipc, "candidate": candidate, "seed": seed} if config.reproducible else {}

    return tuple(
        {
            **origin(index),
            "description": texts[slots[index]],
            "scores": {} if probability is None else {"teacher_probability": round(probability, 4)},
        }
        for index, probability in zip(chosen.tolist(), sure, strict=True)
    )


def write_set(
    method: str,
    make_images: Callable[[Path], Tensor],
    scenes: Scenes,
    config: Config,
    run: Run,
    *,
    inputs: Sequence[Any],
    records: tuple[dict[str, Any], ...] = (),
) -> DistilledSet:
    """Return the distilled set of a rival from stage `distilled`.

    `make_images` is given the stage's folder, where it may keep parts, and returns uint8 images
    [classes * IPC, 3, s, s], those of a class side by side. `inputs` are what they depend on besides `method`.
    """

    def build(folder: Path) -> None:
        images = make_images(folder)
        forget_parts(folder)
        labels = slot_labels(scenes, config)
        DistilledSet(images, labels, scenes.classes, records, about(method, config)).write(folder)

    return DistilledSet.load(run.stage("distilled", build, version=4, inputs=[method, *inputs]))


def keep_scenes(method: str, select: Callable[[], Tensor], scenes: Scenes, config: Config, run: Run) -> DistilledSet:
    """Return the set of real scenes whose indices, int64 [classes * IPC], `select` gives, from stage `distilled`."""

    def images(_: Path) -> Tensor:
        return scenes.pixels(select(), size=config.size)

    inputs = [scenes.fingerprint(), config.ipc, config.size, config.seed]
    return write_set(method, images, scenes, config, run, inputs=inputs)


def each_class(scenes: Scenes, select: Callable[[Tensor], Tensor]) -> Tensor:
    """Return int64 indices into `scenes`, class after class: what `select` returns of the indices of each."""
    own = [(scenes.labels == label).nonzero()[:, 0] for label in range(len(scenes.classes))]
    return torch.cat([select(indices) for indices in own])


def keep_candidates(
    method: str, candidates: Tensor, texts: list[str], prior: Prior, scenes: Scenes, config: Config, run: Run
) -> DistilledSet:
    """Return the set of all `candidates` [classes * IPC, C, h, w], drawn under `texts`, from stage `distilled`."""
    seeds = [{"seed": slot * MOST_CANDIDATES} if config.reproducible else {} for slot in range(len(texts))]
    records = tuple({**seed, "description": text} for seed, text in zip(seeds, texts, strict=True))

    def images(_: Path) -> Tensor:
        return decode(prior, candidates, config)

    inputs = [run.fingerprint_of("candidates")]
    return write_set(method, images, scenes, config, run, inputs=inputs, records=records)


def decode(prior: Prior, latents: Tensor, config: Config, *, draft: bool = False) -> Tensor:
    """Return uint8 images of `latents`, as many together as are sampled together; drafts where nobody will see them."""
    return torch.cat([prior.decode(part, draft=draft) for part in latents.split(config.sampling.batch)])


def about(method: str, config: Config) -> dict[str, Any]:
    """Return what the manifest says of the whole set: how it was made, by which settings and versions."""
    real = METHODS[method].real_pixels
    settings = config.model_dump(mode="json", exclude=None if config.reproducible else {"seed", "reproducible"})
    # The set is handed around: where folders and servers are is nobody's business.
    if Path(config.base).is_dir():
        settings["base"] = Path(config.base).name
    describer = config.descriptions.describer
    if describer.startswith("openai:") or Path(describer).is_dir():
        settings["descriptions"]["describer"] = Path(describer).name if Path(describer).is_dir() else "openai"
    facts = None if real or config.base == SCRATCH else read_facts(source_of(config.base, config.size))
    base = {"base": {"name": facts.name, "archives": facts.archives, "terms": facts.terms}} if facts else {}
    return {"method": method, "real_pixels": real, "config": settings, "versions": versions(), **base}
