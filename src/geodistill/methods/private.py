"""DPD under differential privacy: the same line, in which all that is learned from the scenes is a noisy sum.

    scenes -> latents -> profiles -> descriptions -> centres, teacher, adapter, moments -> candidates -> distilled set

Each arrow out of the scenes is a mechanism of the one budget; whatever follows from what it gives costs no more. A
candidate starts as the noisy mean of a cluster's latents, never as a member, from a level of diffusion noise that hides
the noise of the mean: what protects the scenes is taken for a part of what the prior removes anyway. Refinement needs
no scene: its error follows from noisy second moments of the backbone's features.

Starts and adapter can be left out (`sampling.follow=none`, `finetune.steps=0`). Candidates are then drawn from text
alone, what is noisily measured in a class, and all of the budget is for profiles and moments.
"""

import math
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from geodistill.config import Config
from geodistill.descriptions.measured import DIRECTION, measure, sentence
from geodistill.descriptions.prompts import class_prompt
from geodistill.distilled import DistilledSet
from geodistill.errors import PrivacyError
from geodistill.evaluation.networks import FEATURES, backbone_features, fold_norms, pretrained
from geodistill.methods.stages import (
    Chosen,
    about,
    decode,
    describe_images,
    drawn_in_secret,
    encode,
    make_base,
    requests_for,
    scene_features,
    seed_of_noise,
    slot_labels,
)
from geodistill.prior.base import Prior, source_of
from geodistill.prior.finetune import add_adapter, merge_adapter, save_adapter
from geodistill.prior.guidance import coarse
from geodistill.prior.sample import covering_strengths, sample
from geodistill.prior.training import TrainingData, TrainingPlan, denoising_loss, draw_batch, prompt_table
from geodistill.privacy.accounting import Budget, Mechanism, spend
from geodistill.privacy.dpsgd import PrivateTraining, train_privately
from geodistill.privacy.noisy import ROUNDS, Moments, SecretNoise, noisy_means, noisy_moments, private_clusters
from geodistill.privacy.overlap import fewest_noticed, told_overlap
from geodistill.processes import processes
from geodistill.refinement import MomentsLesson, refine
from geodistill.run import Run, forget_parts, save_tensors
from geodistill.scenes.scenes import Scenes
from geodistill.seeding import derive_seed, generator, secret_generator
from geodistill.selection import herd
from geodistill.teacher import Teacher, judge, load_teacher, save_teacher

# Noise multipliers over that of the starts. Profiles are means over a whole class and stand far more; clusters are no
# more than a guess at which scenes to average.
_RATIOS = {"profiles": 4.0, "clusters": 4.0, "starts": 1.0, "teacher": 1.0, "adapter": 1.0, "moments": 1.0}
# Directions, drawn at random, that scenes are clustered along.
_DIRECTIONS = 16
# Length to which the coarse part of a latent is clipped, over the root of the latent's dimensions.
_COARSE = 0.66
# Length to which what the describer measures is clipped; shares, of which most of it consists, add up to one.
_MEASURES = 2.0
# Channels of the teacher: noise grows with every weight.
_WIDTH = 32


def make_private(scenes: Scenes, config: Config, run: Run) -> DistilledSet:
    """Return the distilled set of `scenes`, made in `run`; (ε, δ)-differentially private, see `guarantee`.

    Raises:
        PrivacyError: δ is not below one in as many as there are images, or the base was trained on them.
        ConfigError: Opacus or dp-accounting is not installed.
    """
    check_private(scenes, config)
    budget = budget_of(len(scenes), config)
    prior = make_base(scenes, config, run)
    # Only means of clusters and the adapter's training need them.
    latents = encode(scenes, prior, config, run) if encodes(config) else torch.empty(0)
    profiles = _profiles(scenes, budget, config, run)
    texts = _descriptions(scenes, profiles, prior)
    if _follows(config):
        starts = _starts(latents[:, 0], scenes, profiles, budget, config, run)
    else:
        count = len(scenes.classes) * config.ipc
        starts = _Starts(prior.blank(count, config.size), torch.zeros(count))
    teacher = _teach(latents, scenes, budget, config, run) if has_teacher(config) else None
    _finetune(prior, latents, scenes, texts, teacher, budget, config, run)
    if not config.reproducible:
        config = drawn_in_secret(config, run.secret())
    candidates = _draw(prior, starts, texts, config, run)
    chosen = _choose(candidates, prior, teacher, profiles, config, run)
    if config.refinement.steps:
        chosen = _refined(chosen, prior, scenes, budget, config, run)
    return _hand_out(chosen, prior, scenes, texts, budget, config, run)


def check_private(scenes: Scenes, config: Config) -> None:
    """Raise PrivacyError where the guarantee would be none: see `make_private`."""
    if processes().count > 1:
        raise PrivacyError("differential privacy is worked out for one process: start this without accelerate")
    count, delta = len(scenes), config.delta or 0.0
    if delta >= 1 / count:
        raise PrivacyError(
            f"delta is {delta:g}, with {count} images it has to be below {1 / count:.2g}, or giving one image "
            "away whole would pass for private: lower --delta"
        )
    folder = Path(source_of(config.base, config.size))
    overlap = told_overlap(scenes.keys, folder, images="images", base=f"the base {config.base!r}")
    if overlap:
        raise PrivacyError(
            f"{overlap}, and what it remembers of them no noise hides: give a --base that was trained on other data"
        )


def budget_of(count: int, config: Config) -> Budget:
    """Return the noise of every mechanism of a run on `count` images."""
    teacher, adapter = _teacher_training(count, config), _adapter_training(count, config)
    mechanisms = [Mechanism("profiles", _RATIOS["profiles"])]
    if _follows(config):
        mechanisms.append(Mechanism("clusters", _RATIOS["clusters"], steps=ROUNDS))
        mechanisms.append(Mechanism("starts", _RATIOS["starts"]))
    if has_teacher(config):
        mechanisms.append(Mechanism("teacher", _RATIOS["teacher"], teacher.rate, teacher.steps))
    if config.refinement.steps:
        mechanisms.append(Mechanism("moments", _RATIOS["moments"]))
    if config.finetune.steps:
        mechanisms.append(Mechanism("adapter", _RATIOS["adapter"], adapter.rate, adapter.steps))
    if config.epsilon is None or config.delta is None:
        raise PrivacyError("differential privacy needs epsilon and delta")
    return spend(mechanisms, config.epsilon, config.delta)


def encodes(config: Config) -> bool:
    """Whether a private run of `config` needs the scenes' latents."""
    return bool(config.finetune.steps) or _follows(config)


def _follows(config: Config) -> bool:
    """Whether candidates start from noisy means."""
    return config.sampling.follow == "start"


def has_teacher(config: Config) -> bool:
    """Whether a private run has a teacher: the adapter's consistency loss alone needs one, and it costs noise."""
    return bool(config.finetune.steps and config.finetune.consistency)


def _teacher_training(count: int, config: Config) -> PrivateTraining:
    own = config.teacher
    return PrivateTraining.instead_of(count, own.steps, own.batch, own.lr)


def _adapter_training(count: int, config: Config) -> PrivateTraining:
    own = config.finetune
    return PrivateTraining.instead_of(count, max(1, own.steps), own.batch, own.lr)


@dataclass(frozen=True)
class _Profiles:
    """Noisy means of each class: `features` float64 [classes, 1280], `measures` [classes, M]."""

    features: Tensor
    measures: Tensor


def _profiles(scenes: Scenes, budget: Budget, config: Config, run: Run) -> _Profiles:
    """Return the noisy means from stage `profiles`."""
    features = scene_features(scenes, config, run)

    def build(folder: Path) -> None:
        measures = torch.cat([measure(part) / _MEASURES for part in scenes.pixels(size=config.size).split(256)])
        rows = torch.cat([features.double(), measures.double()], dim=1)
        noise, by = budget.noise["profiles"], SecretNoise()
        means, _ = noisy_means(rows, scenes.labels, len(scenes.classes), norm=2**0.5, noise=noise, by=by)
        save_tensors({"means": means}, folder / "profiles.safetensors")

    inputs = [scenes.fingerprint(), config.size, budget.noise["profiles"]]
    stage = run.stage("profiles", build, version=1, inputs=inputs)
    means = load_file(stage / "profiles.safetensors")["means"]
    measures = means[:, FEATURES:] * _MEASURES
    # Shares and strengths are not negative, whatever the noise says; directions, a cosine and a sine, can be.
    possible = measures.clamp_min(0)
    possible[:, DIRECTION] = measures[:, DIRECTION]
    return _Profiles(means[:, :FEATURES], possible)


def _descriptions(scenes: Scenes, profiles: _Profiles, prior: Prior) -> list[str]:
    """Return for each class what the noisy means of what is measured say; the class prompt where that is too long."""
    prompts = [class_prompt(name) for name in scenes.classes]
    texts = [f"{prompt}, {sentence(row)}" for prompt, row in zip(prompts, profiles.measures, strict=True)]
    return [text if prior.fits(text) else prompt for text, prompt in zip(texts, prompts, strict=True)]


@dataclass(frozen=True)
class _Starts:
    """Noisy means float32 [P, C, h, w] of clusters' coarse latents, the deviation of their noise, float [P]."""

    latents: Tensor
    noisy: Tensor


def _starts(latents: Tensor, scenes: Scenes, profiles: _Profiles, budget: Budget, config: Config, run: Run) -> _Starts:
    """Return what candidates start from, from stage `centres`: IPC of each class side by side."""
    features = scene_features(scenes, config, run)

    def build(folder: Path) -> None:
        by = SecretNoise()
        points = _points(features, scenes.labels, profiles)
        noise = budget.noise["clusters"]
        assigned = private_clusters(points, scenes.labels, len(scenes.classes), config.ipc, noise=noise, by=by)
        rough = coarse(latents.float())
        norm, noise = _COARSE * rough[0].numel() ** 0.5, budget.noise["starts"]
        count = len(scenes.classes) * config.ipc
        means, noisy = noisy_means(rough.flatten(1), assigned, count, norm=norm, noise=noise, by=by)
        # What is not coarse in it is noise alone.
        kept = {"latents": coarse(means.float().view(-1, *rough.shape[1:])), "noisy": noisy.float()}
        save_tensors(kept, folder / "centres.safetensors")

    inputs = [run.fingerprint_of("latents"), run.fingerprint_of("profiles"), config.ipc]
    inputs += [budget.noise["clusters"], budget.noise["starts"]]
    kept = load_file(run.stage("centres", build, version=1, inputs=inputs) / "centres.safetensors")
    return _Starts(kept["latents"], kept["noisy"])


def _points(features: Tensor, labels: Tensor, profiles: _Profiles) -> Tensor:
    """Return float64 [N, _DIRECTIONS]: features less the noisy mean of their class, along random directions."""
    drawn = torch.randn(features.shape[1], _DIRECTIONS, generator=generator(0, "directions"), dtype=torch.float64)
    directions = torch.linalg.qr(drawn).Q * (features.shape[1] / _DIRECTIONS) ** 0.5  # lengths are kept on average
    points: Tensor = (features.double() - profiles.features[labels]) @ directions
    return points


def _teach(latents: Tensor, scenes: Scenes, budget: Budget, config: Config, run: Run) -> Teacher:
    """Return the frozen teacher from stage `teacher`, trained by DP-SGD; how good it is would cost to ask."""
    training = _teacher_training(len(scenes), config)

    def build(folder: Path) -> dict[str, Any]:
        by = secret_generator()
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(config.seed, "teacher"))
            teacher = Teacher(latents.shape[2], len(scenes.classes), _WIDTH)
        teacher.train().dropout.p = 0.0

        def loss_of(images: Tensor) -> Tensor:
            views = torch.randint(0, latents.shape[1], (len(images),), generator=by)
            return F.cross_entropy(teacher(latents[images, views].float()), scenes.labels[images])

        train_privately(teacher, loss_of, training, noise=budget.noise["teacher"], by=SecretNoise(), title="teacher")
        save_teacher(teacher, folder)
        return {"steps": training.steps, "batch": training.batch, "noise": budget.noise["teacher"]}

    inputs = [run.fingerprint_of("latents"), config.teacher.model_dump(), config.seed, budget.noise["teacher"]]
    return load_teacher(run.stage("teacher", build, version=1, inputs=["private", *inputs]))


def _finetune(
    prior: Prior,
    latents: Tensor,
    scenes: Scenes,
    texts: list[str],
    teacher: Teacher | None,
    budget: Budget,
    config: Config,
    run: Run,
) -> None:
    """Train the adapter by DP-SGD in stage `adapter` and merge it into `prior`; `texts` are the classes' prompts."""
    settings, training = config.finetune, _adapter_training(len(scenes), config)
    if not settings.steps:
        return

    def build(folder: Path) -> dict[str, Any]:
        by = secret_generator()
        adapted = replace(prior, unet=deepcopy(prior.unet))
        add_adapter(adapted, rank=settings.rank, seed=config.seed)
        table, rows = prompt_table([[texts[label]] for label in scenes.labels.tolist()])
        data = TrainingData(latents, scenes.labels, rows, adapted.embed(table))
        options = settings.model_dump(exclude={"rank", "weights"})
        plan = TrainingPlan(seed=config.seed, teacher=teacher, working=torch.float32, **options)
        alphas = adapted.scheduler.alphas_cumprod.float()
        prediction = adapted.scheduler.config.prediction_type

        def loss_of(images: Tensor) -> Tensor:
            drawn = draw_batch(data, images, settings.drop_prompt, len(alphas), by)
            moved = (tensor.to(prior.device) for tensor in drawn)
            return denoising_loss(adapted.unet, alphas.to(prior.device), prediction, plan, *moved)

        adapted.unet.train()
        train_privately(
            adapted.unet, loss_of, training, noise=budget.noise["adapter"], by=SecretNoise(), title="adapter"
        )
        save_adapter(adapted, folder)
        return {"steps": training.steps, "batch": training.batch, "noise": budget.noise["adapter"]}

    learned = ("latents", "profiles", "teacher") if teacher else ("latents", "profiles")
    inputs: list[Any] = [run.fingerprint_of(name) for name in learned]
    inputs += [settings.model_dump(), config.seed, config.precision, budget.noise["adapter"]]
    merge_adapter(prior, run.stage("adapter", build, version=1, inputs=["private", *inputs]))


def _draw(prior: Prior, starts: _Starts, texts: list[str], config: Config, run: Run) -> Tensor:
    """Return candidates float32 [P * R, C, h, w] from stage `candidates`, from levels that hide their starts' noise."""
    own = [text for text in texts for _ in range(config.ipc)]

    def build(folder: Path) -> dict[str, Any]:
        requests = requests_for(prior, starts.latents, own, config, starts=None, noisy=starts.noisy)
        strengths = covering_strengths(prior, config.sampling, starts.noisy.tolist())
        drawn = torch.empty(len(requests.slots), *starts.latents.shape[1:])
        for strength in sorted(set(strengths)):
            which = torch.tensor([strengths[slot] == strength for slot in requests.slots.tolist()]).nonzero()[:, 0]
            parts = folder / f"strength-{strength:.3f}"
            parts.mkdir(exist_ok=True)
            settings = config.sampling.model_copy(update={"strength": strength})
            seed = seed_of_noise("candidates", config, run)
            drawn[which] = sample(prior, requests.part(which), settings, seed=seed, folder=parts)
        save_tensors({"latents": drawn}, folder / "candidates.safetensors")
        for parts in folder.glob("strength-*"):
            forget_parts(parts)
            parts.rmdir()
        return {"images": len(drawn), "strengths": {f"{k:.3f}": strengths.count(k) for k in sorted(set(strengths))}}

    after = [run.fingerprint_of("centres")] if _follows(config) else []
    after += [run.fingerprint_of("profiles")]
    after += [run.fingerprint_of("adapter")] if config.finetune.steps else []
    inputs = [*after, config.sampling.model_dump(), config.seed, config.precision]
    stage = run.stage("candidates", build, version=1, inputs=["private", *inputs])
    candidates: Tensor = load_file(stage / "candidates.safetensors")["latents"]
    return candidates


def _choose(
    candidates: Tensor, prior: Prior, teacher: Teacher | None, profiles: _Profiles, config: Config, run: Run
) -> Chosen:
    """Return the candidates that herding takes towards the noisy mean of their class, from stage `chosen`."""

    def build(folder: Path) -> None:
        features = backbone_features(decode(prior, candidates, config, draft=True))
        each = config.ipc * config.sampling.candidates
        own = features.view(len(profiles.features), each, -1)
        rows = torch.cat(
            [label * each + herd(own[label], config.ipc, mean) for label, mean in enumerate(profiles.features)]
        )
        logits = judge(teacher, candidates[rows])[0] if teacher else torch.zeros(len(rows), 0)
        Chosen(rows, candidates[rows], logits).save(folder)

    inputs = ["private", run.fingerprint_of("candidates")]
    inputs += [run.fingerprint_of("teacher")] if teacher else []
    return Chosen.load(run.stage("chosen", build, version=1, inputs=inputs))


def _refined(chosen: Chosen, prior: Prior, scenes: Scenes, budget: Budget, config: Config, run: Run) -> Chosen:
    """Return `chosen` with its latents moved, from stage `refined`: by noisy sums alone."""
    moments = _moments(scenes, budget, config, run)
    lesson = MomentsLesson(fold_norms(pretrained()), slot_labels(scenes, config), moments)

    def build(folder: Path) -> dict[str, Any]:
        seed = derive_seed(config.seed, "refinement")
        latents, facts = refine(prior, chosen.latents, lambda _: lesson, config.refinement, seed=seed, folder=folder)
        replace(chosen, latents=latents).save(folder)
        return facts

    inputs: list[Any] = ["private", run.fingerprint_of("chosen"), run.fingerprint_of("moments")]
    inputs += [config.refinement.model_dump(), config.seed]
    return Chosen.load(run.stage("refined", build, version=2, inputs=inputs))


def _moments(scenes: Scenes, budget: Budget, config: Config, run: Run) -> Moments:
    """Return the noisy moments of the backbone's features from stage `moments`."""
    features, noise = scene_features(scenes, config, run), budget.noise["moments"]

    def build(folder: Path) -> None:
        found = noisy_moments(features, scenes.labels, len(scenes.classes), noise=noise, by=SecretNoise())
        kept = {"second": found.second, "sums": found.sums, "counts": found.counts}
        save_tensors(kept | {"deviation": torch.tensor(found.deviation)}, folder / "moments.safetensors")

    stage = run.stage("moments", build, version=1, inputs=[scenes.fingerprint(), config.size, noise])
    kept = load_file(stage / "moments.safetensors")
    return Moments(kept["second"], kept["sums"], kept["counts"], float(kept["deviation"]))


def _hand_out(
    chosen: Chosen, prior: Prior, scenes: Scenes, texts: list[str], budget: Budget, config: Config, run: Run
) -> DistilledSet:
    """Return the set from stage `distilled`."""
    fewest = fewest_noticed(len(scenes), Path(source_of(config.base, config.size)))

    def build(folder: Path) -> None:
        labels = slot_labels(scenes, config)
        described = [texts[label] for label in labels.tolist()]
        logits = chosen.logits if chosen.logits.shape[1] else None
        records = describe_images(chosen.rows, labels, logits, described, config)
        facts = about("dpd", config) | {"guarantee": guarantee(budget, len(scenes), fewest)}
        DistilledSet(decode(prior, chosen.latents, config), labels, scenes.classes, records, facts).write(folder)

    last = "refined" if config.refinement.steps else "chosen"
    inputs = ["private", run.fingerprint_of(last), asdict(budget)]
    return DistilledSet.load(run.stage("distilled", build, version=5, inputs=inputs))


def guarantee(budget: Budget, count: int, fewest: int | None) -> str:
    """Return what the data card says of the budget: what is covered, and what is not.

    `fewest`: how many of the `count` images the base must have seen to be noticed, None if it cannot be checked.
    """
    checked = "which cannot be checked, as it does not list its training images"
    if fewest is not None:
        checked = (
            f"which was checked file by file: a base that was trained on fewer than about {fewest} of the {count} "
            "files, or on the same images in other files, is not noticed"
        )
    return (
        f"Differentially private: ε = {_rounded_up(budget.epsilon)}, δ = {budget.delta:.3g}. Two archives are "
        f"neighbours if one of their {count} images counts in the one and is blank in the other (zero-out; the number "
        "of images is public). If one image is replaced by another, ε = "
        f"{_rounded_up(budget.replacing)} at the same δ. "
        "Covered is all that was learned from the images: means of classes and clusters (if any), second moments of "
        "features, teacher and adapter (if any), descriptions, choice and refinement follow from sums with Gaussian "
        "noise. "
        "The account is numerical (privacy loss distributions, rounded up). Another set made from the same images "
        "spends as much again. Not covered: what the "
        f"base was trained on, {checked}; the names of the classes and the number of images, taken as known; "
        "several images of one place, each of which counts for itself; whoever reads the run folder or the memory of "
        "the machine that made the set."
    )


def _rounded_up(epsilon: float) -> str:
    """Return ε in three digits, never less than it is."""
    step = 10.0 ** (math.floor(math.log10(epsilon)) - 2)
    return f"{math.ceil(epsilon / step - 1e-6) * step:.3g}"
