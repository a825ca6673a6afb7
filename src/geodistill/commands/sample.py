"""Targeted images: more images from a finished run under a prompt of one's own, with a class label."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from geodistill.commands.source import base_from
from geodistill.config import Config, load_config
from geodistill.descriptions import readable
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError, RunError
from geodistill.pipeline import ADAPTER, BASE, DISTILLED
from geodistill.prior.base import Prior, load_prior, source_of
from geodistill.prior.catalogue import SCRATCH, tell_terms
from geodistill.prior.finetune import merge_adapter
from geodistill.prior.sample import Requests, sample_fitting
from geodistill.prior.training import batches
from geodistill.progress import progress
from geodistill.provenance import fingerprint
from geodistill.run import explain_os_errors, versions, write_atomic
from geodistill.seeding import derive_seed
from geodistill.stages.following import chosen_sampling


def sample(
    run: Path | str,
    prompt: str,
    *,
    count: int = 8,
    class_name: str | None = None,
    seed: int = 0,
    out: Path | str | None = None,
) -> Path:
    """Draw `count` images under `prompt` from the base and the adapter of a finished `distill` run.

    No prototype is followed. Images depend only on the prompt and the seed; image k depends neither on `count` nor on
    the others. They are written to `out`, by default RUN/samples/<prompt>, as `<class>/<prompt>_<seed>_<k>.png`, which
    is an image folder. All settings are in <prompt>_<seed>.json.

    Args:
        run: the run folder.
        prompt: for example "A satellite image of storage tanks, snow".
        count: number of images.
        class_name: the class that labels the images; if None, the class that the prompt names.
        seed: other seeds draw other images.
        out: the folder to write to: new, empty, or one with earlier samples.

    Returns:
        the folder.

    Raises:
        RunError: the run does not exist or is not finished, or `out` cannot be written.
        ConfigError: the prompt names no class or several, `class_name` is no class of the run, the prompt is too long,
            or `out` holds other files than samples.
        PriorError: the run's base is gone, or memory runs out with one image at a time.

    >>> import geodistill, tempfile
    >>> data = geodistill.builtin_scenes(train_per_class=12, test_per_class=3, size=32)
    >>> run = Path(tempfile.mkdtemp()) / "run"
    >>> _ = geodistill.distill(data.train, geodistill.load_config("tiny", ["sampling.strength=0.6"]), out=run)
    >>> folder = geodistill.sample(run, "A satellite image of beach, evening", count=2)
    >>> sorted(path.parent.name for path in folder.glob("*/*.png"))
    ['Beach', 'Beach']
    """
    run, slug = Path(run), _slug(prompt)
    folder = Path(out) if out is not None else run / "samples" / slug
    _check_folder(folder)
    config, like = _finished(run)
    config = config.model_copy(update={"sampling": chosen_sampling(config, run)})
    classes = like.classes
    label = _known(class_name, classes) if class_name else _named(prompt, classes)
    prior = _adapted(run, config)
    if not prior.fits(prompt):
        raise ConfigError(
            f"the prompt has {prior.tokens(prompt)} tokens, the base's text encoder takes {prior.token_limit}: "
            "shorten it"
        )
    images = _draw(prior, prompt, count, config, seed)
    about = {"prompt": prompt, "class": label, "count": count, "seed": seed, "base": Path(config.base).name}
    with explain_os_errors(folder):
        # Images of an earlier call that drew more stay: image k does not depend on their number.
        about["count"] = max(count, len([*folder.glob(f"{label}/{slug}_{seed}_*{like.suffix}")]))
        (folder / label).mkdir(parents=True, exist_ok=True)
        # First, so that a folder whose images were interrupted is known as one of samples.
        write_atomic(
            folder / f"{slug}_{seed}.json",
            json.dumps(about | {"versions": versions()}, indent=2, ensure_ascii=False) + "\n",
        )
        for rank, image in enumerate(images):
            like.write_image(image, folder / label / f"{slug}_{seed}_{rank:03d}{like.suffix}")
    return folder


def _check_folder(folder: Path) -> None:
    """Raise ConfigError if `folder` holds anything but earlier samples, such as an archive or a set."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file: choose a new folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    files = [path for path in folder.iterdir() if path.is_file()]
    if not files or not all(_is_record(path) for path in files):
        raise ConfigError(f"--out {folder} holds other files than samples: choose a new folder")


def _is_record(path: Path) -> bool:
    """Return whether the file at `path` is what `sample` notes about its images."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {"prompt", "class", "count", "seed"} <= found.keys()
    except (OSError, ValueError, AttributeError):
        return False


def _finished(run: Path) -> tuple[Config, DistilledSet]:
    """Return the settings and the set of the `distill` run in folder `run`."""
    if not (run / "config.toml").is_file() or not (run / "run.json").is_file():
        raise RunError(f"{run} is no run of `geodistill distill`: it has no config.toml and run.json")
    if not (run / DISTILLED.name).is_dir():
        raise RunError(f"the run in {run} is not finished: the command that began it goes on where it stopped")
    return load_config(run / "config.toml"), DistilledSet.load(run / DISTILLED.name)


def _adapted(run: Path, config: Config) -> Prior:
    needed = [*([BASE.name] if config.base == SCRATCH else []), *([ADAPTER.name] if config.finetune.steps else [])]
    missing = [name for name in needed if not (run / name).is_dir()]
    if missing:
        raise RunError(
            f"{run} has no {missing[0]}: its method trains none, and `sample` draws with the base that a run has "
            "adapted to its scenes: give a run of the method dpd"
        )
    source = source_of(base_from(run, config.base), config.size)
    tell_terms(source)
    prior = load_prior(source, config.precision)
    if config.finetune.steps:
        merge_adapter(prior, run / ADAPTER.name)
    return prior


def _known(name: str, classes: tuple[str, ...]) -> str:
    for own in classes:
        if name in (own, readable(own)):
            return own
    raise ConfigError(f"there is no class {name!r} in this run: its classes are {', '.join(classes)}")


def _named(prompt: str, classes: tuple[str, ...]) -> str:
    """Return the class whose readable name is in `prompt`.

    A name counts only if it stands somewhere outside longer names.
    """
    spans = {own: _places(_words(readable(own)), _words(prompt)) for own in classes}
    every = [span for found in spans.values() for span in found]
    named = [own for own, found in spans.items() if any(not _in_longer(span, every) for span in found)]
    if len(named) != 1:
        what = "no class of this run" if not named else f"several classes ({', '.join(named)})"
        raise ConfigError(
            f"the prompt {prompt!r} names {what}: say with --class which label the images get, of {', '.join(classes)}"
        )
    return named[0]


def _places(words: str, text: str) -> list[tuple[int, int]]:
    """Return where `words` begin and end in `text`, wherever they occur."""
    starts = [match.start() for match in re.finditer(f"(?={re.escape(words)})", text)]
    return [(start, start + len(words)) for start in starts]


def _in_longer(span: tuple[int, int], every: list[tuple[int, int]]) -> bool:
    return any(start <= span[0] and span[1] <= end and (start, end) != span for start, end in every)


def _words(text: str) -> str:
    """Return the words of `text` in lower case, with one blank around each."""
    return " ".join(["", *re.findall(r"[^\W_]+", text.casefold()), ""])


def _draw(prior: Prior, prompt: str, count: int, config: Config, seed: int) -> torch.Tensor:
    """Return uint8 images [count, channels, s, s]."""
    settings = config.sampling.model_copy(update={"follow": "none"})
    requests = Requests(
        prompts=torch.ones(count, dtype=torch.int64),
        embeddings=prior.embed(["", prompt]),
        prototypes=prior.blank(1, config.size),
        slots=torch.zeros(count, dtype=torch.int64),
        seeds=torch.arange(count),
    )
    own = derive_seed(seed, f"targeted {prompt}")
    parts = []
    with progress("images", count) as advance:
        for which in batches(count, settings.batch):
            latents = sample_fitting(prior, requests.part(which), settings, seed=own)
            parts.append(prior.decode(latents))
            advance(which.stop)
    return torch.cat(parts)


def _slug(prompt: str) -> str:
    """Return a file name for `prompt`, a different one for each prompt."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-") or "image"
    return f"{words}-{fingerprint(prompt)[:6]}"
