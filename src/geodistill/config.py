"""All settings of a run, validated, with default and meaning.

Precedence, from lowest to highest: the defaults below, a TOML file, `--set section.key=value`, the command's flags.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from geodistill.devices import Precision
from geodistill.errors import ConfigError


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# Group normalisation in the U-Net needs multiples of 32 channels.
_Width = Annotated[int, Field(ge=32, multiple_of=32)]


class CompactSettings(_Settings):
    """Building a base from the training scenes: `--base scratch` and `geodistill pretrain`."""

    autoencoder: Literal["linear", "convolutional"] = Field(
        "linear", description="linear: principal components of 8x8-pixel patches; convolutional: trained"
    )
    autoencoder_steps: int = Field(8000, ge=1, description="training steps of a convolutional autoencoder")
    autoencoder_batch: int = Field(64, ge=1, description="images per step of the autoencoder and of sharpening")
    autoencoder_lr: float = Field(1e-3, gt=0, description="peak learning rate of the autoencoder")
    sharpening_steps: int = Field(
        0, ge=0, description="further steps that train only the decoder, against adversarial discriminators"
    )
    channels: int = Field(48, ge=1, le=192, description="latent channels per 8x8-pixel patch")
    width: tuple[_Width, _Width] = Field((192, 256), description="U-Net channels at full and at half latent resolution")
    steps: int = Field(4000, ge=1, description="training steps of the U-Net")
    nearer_views: int = Field(
        8,
        ge=0,
        description="zoomed-in crops of every scene, besides its eight views, if the scene has enough pixels",
    )
    zoom: float = Field(1.75, ge=1, description="largest zoom factor of these crops")
    doubled: bool = Field(
        False, description="every fourth step uses scenes at twice the size, if they have enough pixels"
    )
    batch: int = Field(64, ge=1, description="latents per step")
    lr: float = Field(8e-4, gt=0, description="peak learning rate of AdamW, decayed to zero")
    ema: float = Field(
        0.999, ge=0, lt=1, description="decay of the exponential moving average of the weights, which is what is saved"
    )
    prediction: Literal["v_prediction", "epsilon"] = Field("v_prediction", description="what the U-Net predicts")


class LatentsSettings(_Settings):
    """Encoding the training scenes."""

    views: Literal[1, 2, 4, 8] = Field(
        8,
        description="flips and right-angle rotations stored for every scene; at most 4, 2 and 1 of more than 32,768, "
        "65,536 and 131,072 scenes",
    )


class TeacherSettings(_Settings):
    """The latent teacher: a classifier of real latents that scores candidates and gives the consistency loss."""

    steps: int = Field(1000, ge=1, description="training steps")
    batch: int = Field(64, ge=1, description="latents per step")
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
    width: int = Field(128, ge=8, multiple_of=8, description="channels")
    held_out: float = Field(0.1, gt=0, lt=0.5, description="share of the training scenes used for its validation")


class PrototypesSettings(_Settings):
    """Clustering each class."""

    features: Literal["latent", "backbone"] = Field(
        "backbone", description="what is clustered: pooled latents (the paper) or features of the ImageNet backbone"
    )
    starts: Literal["representative", "members"] = Field(
        "members",
        description="what candidates start from: the cluster's representative (the paper), or its members in turn, "
        "starting with the representative",
    )


class DescriptionsSettings(_Settings):
    """The text prompt of each prototype."""

    describer: str = Field(
        "measured",
        description="'measured' (statistics of the pixels), 'template' (class name only), or a vision-language model: "
        "a folder or hub name for transformers, 'openai:URL' for a server's first model, or 'openai:URL#MODEL'",
    )


class FinetuneSettings(_Settings):
    """Training the prior's U-Net on the archive: all its weights, or an adapter (LoRA)."""

    weights: Literal["auto", "all", "lora"] = Field(
        "auto",
        description="what is trained: all weights, a LoRA adapter on the attention, or auto: all of a U-Net with fewer "
        "than 50 million weights, LoRA on a larger one and under privacy 'dp'",
    )
    steps: int = Field(1000, ge=0, description="training steps; 0 uses the base as it is")
    batch: int = Field(64, ge=1, description="latents per step")
    lr: float = Field(4e-4, gt=0, description="peak learning rate of AdamW, decayed to zero")
    warmup: int = Field(100, ge=0, description="steps with a rising learning rate")
    rank: int = Field(4, ge=1, description="rank of the LoRA matrices")
    gamma: float = Field(5.0, gt=0, description="min-SNR weighting")
    consistency: float = Field(
        0.1, ge=0, description="weight of the classification-consistency loss; 0 switches it off"
    )
    cross_entropy: float = Field(1.0, ge=0, description="weight of the cross-entropy in that loss")
    kl: float = Field(
        1.0, ge=0, description="weight of KL(teacher on the scene || teacher on the estimate) in that loss"
    )
    ema: float = Field(
        0.99, ge=0, lt=1, description="decay of the exponential moving average of the weights; 0 saves the last weights"
    )
    drop_prompt: float = Field(
        0.1, ge=0, lt=1, description="share of steps with an empty prompt, for classifier-free guidance"
    )


# Values of `sampling.follow` with which no image follows a training image.
FOLLOWING_NO_SCENE = ("none", "base")


class SamplingSettings(_Settings):
    """Drawing candidates."""

    follow: Literal["start", "guide", "none", "base"] = Field(
        "start",
        description="start: sampling starts from the noised prototype; guide: sampling is pulled towards it; none: "
        "text only; base: half of the candidates start from noised images that the base generates before its "
        "adaptation, the others from text. Default under privacy 'screen': base",
    )
    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        description="start, base: noise level of what sampling starts from (1: pure noise). By default a test on the "
        "training scenes chooses 0.6 or 0.4; under privacy 'dp' it is 0.8, for base 0.6",
    )
    scale: float = Field(1.0, ge=0, description="guide: strength of the pull towards the prototype")
    until: float = Field(0.8, ge=0, le=1, description="guide: share of the steps with the pull")
    guidance: float | None = Field(
        None,
        ge=1,
        description="scale of classifier-free guidance; 1 switches it off. Default: 1.5 if the test chooses strength "
        "0.4, otherwise 3",
    )
    steps: int = Field(
        30, ge=1, le=1000, description="solver steps from noise to image; sampling from a start skips the first ones"
    )
    solver: Literal["ddim", "dpmsolver++", "pndm"] = Field(
        "dpmsolver++", description="solver of the diffusion equation"
    )
    candidates: int = Field(10, ge=1, description="candidates per prototype; 20 under privacy 'screen' and 'dp'")
    batch: int = Field(64, ge=1, description="images per batch")

    @property
    def starts(self) -> bool:
        """Whether sampling starts from a noised image instead of pure noise."""
        return self.follow in ("start", "base")

    @property
    def noise_strength(self) -> float:
        """Sampling strength; the default is 0.6."""
        return self.strength if self.strength is not None else 0.6

    @property
    def guidance_scale(self) -> float:
        """Scale of classifier-free guidance; the default is 3."""
        return self.guidance if self.guidance is not None else 3.0


class SelectionSettings(_Settings):
    """Selection among the candidates."""

    by: Literal["first", "margin", "coverage", "herding"] = Field(
        "herding",
        description="first: the first candidate of each prototype; margin: the one with the largest logit margin; "
        "coverage: those most similar to all real scenes of the class; herding: those whose mean features match the "
        "mean of the class",
    )


class RefinementSettings(_Settings):
    """Optimisation of the selected latents, so that classifiers trained on the images generalise better."""

    steps: int = Field(
        240, ge=0, description="optimisation steps; 0 switches it off. Default under privacy 'screen': 480"
    )
    lr: float = Field(
        0.03, gt=0, description="learning rate of Adam, in standard deviations of a latent's elements, decayed to zero"
    )
    rounds: int = Field(
        3,
        ge=1,
        description="rounds that the steps are split into; each trains a classifier on the set (not under 'dp')",
    )
    students: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (40, 100, 200),
        description="training steps at which a round's classifier is copied; the error on the real scenes in the "
        "features of these copies and of the pretrained backbone is minimised",
    )
    random: bool = Field(
        True,
        description="at every fourth step, match the class means in the features of a random network: for classifiers "
        "that are trained from scratch (not under privacy 'dp')",
    )


class SelfTestSettings(_Settings):
    """The test at the end of `distill`: the set against random real images, on held-out training scenes."""

    held_out: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="share of each class's training scenes that is held out; 0 switches the test off",
    )


class Config(_Settings):
    """All settings of one run."""

    ipc: int = Field(10, ge=1, description="images per class")
    size: int = Field(64, ge=8, description="side of the images in pixels")
    seed: int = Field(0, ge=0, description="random seed; the images follow from it only with `reproducible`")
    reproducible: bool = Field(
        False,
        description="draw the images from the seed, so that the same settings give the same bytes: for benchmarks, not "
        "for sharing. By default they are drawn from a secret in the run folder",
    )
    base: str = Field(
        "compact",
        description="'compact' (in the package), the name of an installed base, 'scratch' (trained in the run on the "
        "scenes), a pipeline folder, or a hub name",
    )
    precision: Precision = Field(
        "auto",
        description="number type of the run's models: bf16, f16 or f32; auto is bf16 if the device supports it in "
        "hardware (evaluation classifiers always use auto)",
    )
    soft_labels: bool = Field(
        False,
        description="also store the class probabilities of each image, from a classifier trained on all scenes",
    )
    privacy: Literal["none", "screen", "dp"] = Field(
        "none",
        description="screen: by default no image starts from a training image, and images too similar to one are drawn "
        "again; dp: differential privacy, everything that is learned from the scenes is a noisy sum. Both change "
        "defaults of other settings, which config.toml shows",
    )
    epsilon: float | None = Field(None, gt=0, description="for 'dp': bound on the effect of one image")
    delta: float | None = Field(None, gt=0, lt=1, description="for 'dp': probability that the bound does not hold")
    compact: CompactSettings = CompactSettings()
    latents: LatentsSettings = LatentsSettings()
    teacher: TeacherSettings = TeacherSettings()
    prototypes: PrototypesSettings = PrototypesSettings()
    descriptions: DescriptionsSettings = DescriptionsSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    sampling: SamplingSettings = SamplingSettings()
    selection: SelectionSettings = SelectionSettings()
    refinement: RefinementSettings = RefinementSettings()
    self_test: SelfTestSettings = SelfTestSettings()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_protection(cls, values: Any) -> Any:
        # Settings that the user gives go before these defaults. Where no image may give away a training image, none
        # starts as one. Images that start from something else are worth less, and are refined for longer. Under
        # differential privacy there is no teacher: the adapter gains more by its share of the budget, on AID
        # (docs/experiments.md).
        if not isinstance(values, dict) or values.get("privacy") not in ("screen", "dp"):
            return values
        given = dict(values)
        gives_way: dict[str, dict[str, Any]] = {
            "sampling": {"follow": "base", "candidates": 20},
            "refinement": {"steps": 480, "rounds": 6},
        }
        if values["privacy"] == "dp":
            gives_way = {
                "sampling": {"strength": 0.8, "candidates": 20},
                "refinement": {"steps": 240},
                "finetune": {"weights": "lora", "steps": 400, "batch": 32, "lr": 5e-4, "consistency": 0},
                "self_test": {"held_out": 0},
            }
        for section, defaults in gives_way.items():
            if isinstance(own := given.get(section, {}), dict):
                given[section] = {**defaults, **own}
        return given

    @model_validator(mode="after")
    def _privacy_is_whole(self) -> "Config":
        given = self.epsilon is not None, self.delta is not None
        if self.privacy != "dp":
            if any(given):
                raise ValueError("epsilon and delta belong to privacy 'dp': add --privacy dp")
            return self
        if not all(given):
            raise ValueError("privacy 'dp' needs both: such as --epsilon 8 --delta 1e-5")
        wrong = {
            "base": self.base == "scratch" and "a base built from the scenes has seen them without noise",
            "soft_labels": self.soft_labels and "they come from a classifier trained without noise",
            "descriptions.describer": self.descriptions.describer != "measured"
            and "only what is 'measured' is a sum that noise can be added to",
            "sampling.follow": self.sampling.follow in ("guide", "base")
            and "candidates are drawn from text ('none') or 'start' from noisy means",
            "selection.by": self.selection.by != "herding" and "'herding' follows a noisy mean",
            "finetune.weights": self.finetune.weights == "all"
            and "noise is added to the gradients of an adapter alone",
            "self_test.held_out": self.self_test.held_out > 0
            and "its result is read from the scenes without noise (--set self_test.held_out=0 leaves it out)",
        }
        for name, why in wrong.items():
            if why:
                raise ValueError(f"privacy 'dp' does not go with this {name}: {why}")
        return self

    @model_validator(mode="after")
    def _screening_leaves_a_choice(self) -> "Config":
        if self.privacy == "screen" and self.selection.by != "herding":
            raise ValueError(f"privacy 'screen' needs selection.by 'herding', got {self.selection.by!r}")
        return self


def load_config(file: Path | str | None = None, sets: Sequence[str] = (), **flags: Any) -> Config:
    """Return the config from a TOML file, `section.key=value` strings and flags.

    Args:
        file: a TOML file, or the name of a preset: demo, fast, paper, paper-r1, pretrain, pretrain-gpu, tiny.
        sets: such as "finetune.steps=500"; later ones win.
        flags: settings by name, which win over both; None leaves a setting as it is.

    Raises:
        ConfigError: the file is not there or is not TOML, a setting is unknown, or a value is out of range.

    >>> load_config("fast", ["sampling.candidates=2"], ipc=5).ipc
    5
    """
    values: dict[str, Any] = _read_toml(_preset_or_file(file)) if file else {}
    for item in sets:
        _apply(values, item)
    values.update({key: value for key, value in flags.items() if value is not None})
    return make_config(values)


@dataclass(frozen=True)
class Setting:
    """One line of `geodistill settings`: name as `--set` takes it, default as it would be written there, meaning."""

    name: str
    default: str
    meaning: str


def explain_settings(settings: BaseModel | None = None, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a run, section after section."""
    settings = Config() if settings is None else settings
    for name, field in type(settings).model_fields.items():
        default = getattr(settings, name)
        if isinstance(default, BaseModel):
            yield from explain_settings(default, f"{name}.")
        else:
            kept = json.dumps(default) if not isinstance(default, str) else default
            choices = field.annotation if get_origin(field.annotation) is Literal else None
            among = f" ({', '.join(map(str, get_args(choices)))})" if choices else ""
            yield Setting(f"{prefix}{name}", kept, f"{field.description or ''}{among}".strip())


def make_config(values: Mapping[str, Any]) -> Config:
    """Return the validated config; see `load_config` for the errors."""
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def without_self_test(config: Config) -> Config:
    """Return `config` with the self-test switched off."""
    return config.model_copy(update={"self_test": SelfTestSettings(held_out=0)})


def recorded(config: Config) -> dict[str, Any]:
    """Return the settings as run.json has them, which `read_recorded` reads back.

    A self-test that is off is left out: that is what the record of a run says that was begun before there was one.
    So is `reproducible`: a run may go on with the other value, and draws its images anew then.
    """
    left_out = {"reproducible"} | (set() if config.self_test.held_out else {"self_test"})
    return config.model_dump(mode="json", exclude=left_out)


def read_recorded(values: Mapping[str, Any]) -> Config:
    """Return the config that `recorded` gave `values` of; see `load_config` for the errors."""
    return make_config({"self_test": {"held_out": 0}, **values})


def defaults_like(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default of every setting as `recorded` writes it, for a run with the protection that `values` has.

    Of the self-test it is that there is none: this is what a record without it says.
    """
    protection = {name: values[name] for name in ("privacy", "epsilon", "delta") if values.get(name) is not None}
    return recorded(make_config(protection)) | {"self_test": {"held_out": 0}}


def to_toml(config: Config) -> str:
    """Return the resolved settings as TOML, which `load_config` reads back to the same config."""
    return tomli_w.dumps(_without_null(config.model_dump(mode="json")))


def _without_null(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` without those that are None, which TOML does not have."""
    given = {key: value for key, value in values.items() if value is not None}
    return {key: _without_null(value) if isinstance(value, dict) else value for key, value in given.items()}


def _preset_or_file(name: Path | str) -> Path:
    """Return the TOML file of the preset of that name, or of that path."""
    preset = Path(str(files("geodistill.presets") / f"{name}.toml"))
    return preset if "/" not in str(name) and preset.is_file() else Path(name)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _apply(values: dict[str, Any], item: str) -> None:
    path, equals, text = item.partition("=")
    if not equals:
        raise ConfigError(f"--set {item!r} has no '=': write --set section.key=value, such as sampling.steps=25")
    *sections, key = path.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {item!r}: {section!r} is not a section")
    values[key] = _literal(text.strip())


def _literal(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word, such as follow=guide


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting {where!r}: known here are {', '.join(_known(problem['loc'][:-1]))}")
        elif not where:  # settings that do not go together: the words are ours, and name them
            lines.append(problem["msg"].removeprefix("Value error, "))
        else:
            lines.append(
                f"setting {where!r}: {problem['msg'][0].lower() + problem['msg'][1:]}, got {problem['input']!r}"
            )
    return "\n".join(lines)


def _known(path: Sequence[Any]) -> list[str]:
    model: Any = Config
    for part in path:
        model = model.model_fields[part].annotation
    return sorted(model.model_fields)
