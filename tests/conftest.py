"""Small things that several tests need, each built once."""

import os
from pathlib import Path

# Before torch is there, and for the commands that tests start too: what they compute is small, and threads that wait
# for one another crawl where something else is running.
os.environ["OMP_NUM_THREADS"] = "1"
# Output as wide tables without colours, whatever terminal the tests run in.
os.environ |= {"COLUMNS": "200", "NO_COLOR": "1"}

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from hypothesis import settings
from transformers import CLIPTextConfig, CLIPTextModel

from geodistill.config import Config, make_config
from geodistill.distilled import DistilledSet
from geodistill.prior.compact import make_tokenizer
from geodistill.scenes import SceneData, Scenes, builtin_scenes, draw_scene
from geodistill.scenes.views import dihedral

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

WORDS = ["a satellite image of beach river forest harbour runway", "mostly vegetation with a little water, dark green"]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train classifiers here, where tests can watch; starting workers takes seconds. test_workers.py starts some."""
    monkeypatch.setattr("geodistill.evaluation.workers.MOST_WORKERS", 1)


@pytest.fixture(scope="session")
def data() -> SceneData:
    """Built-in scenes: 10 classes, 12 training and 3 test images each, 32 px."""
    return builtin_scenes(train_per_class=12, test_per_class=3, size=32)


@pytest.fixture(scope="session")
def tiny() -> Config:
    """Settings as small as they go."""
    return make_config(
        {
            "ipc": 2,
            "size": 32,
            "reproducible": True,
            "base": "scratch",
            "compact": {"channels": 8, "width": (32, 32), "steps": 4, "batch": 4},
            "latents": {"views": 2},
            "teacher": {"steps": 150, "batch": 32, "width": 16, "held_out": 0.2},
            "finetune": {"steps": 4, "batch": 4, "warmup": 1},
            "sampling": {"steps": 3, "strength": 0.6, "guidance": 3, "candidates": 2, "batch": 7},
            "refinement": {"steps": 2, "students": ()},
            "self_test": {"held_out": 0},
        }
    )


def save_tiny_pipeline(
    folder: Path, *, prediction: str = "epsilon", class_embeddings: int | None = None, in_channels: int = 4
) -> Path:
    """Save a Stable-Diffusion-type pipeline of random weights in `folder`: 32 px, latents 4 x 8 x 8."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(WORDS)
    end = tokenizer.eos_token_id
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=class_embeddings,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=4,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def pair() -> Scenes:
    """Two classes of 30 scenes, 32 px, that even the latents of an autoencoder of random weights tell apart."""
    classes = ("Beach", "Forest")
    images = [draw_scene(name, seed, size=32) for name in classes for seed in range(30)]
    return Scenes.from_arrays(images, torch.arange(60) // 30, classes)


@pytest.fixture(scope="session")
def on_pipeline(tiny: Config, sd_folder: Path) -> Config:
    """Settings for `pair` as small as they go, on a tiny pipeline of random weights."""
    return make_config(
        {
            **tiny.model_dump(),
            "base": str(sd_folder),
            "prototypes": {"features": "latent"},
            "teacher": {**tiny.teacher.model_dump(), "steps": 200, "held_out": 0.4},
        }
    )


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny epsilon-prediction pipeline of Stable Diffusion's classes."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def little_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an audit take as little time as it can."""
    monkeypatch.setattr("geodistill.privacy.audit._LEAKED", 5)
    monkeypatch.setattr("geodistill.privacy.copyprint._STEPS", 5)
    monkeypatch.setattr("geodistill.privacy.membership._RESAMPLES", 20)
    monkeypatch.setattr("geodistill.privacy.null._SETS", 99)


@pytest.fixture(scope="session")
def audited_data() -> SceneData:
    """Built-in scenes: 10 classes, 4 training images and 1 test image each, 64 px."""
    return builtin_scenes(train_per_class=4, test_per_class=1, size=64)


@pytest.fixture(scope="session")
def mixed_set(audited_data: SceneData) -> DistilledSet:
    """Two fresh images a class, but that of the third class's two one is a training image turned."""
    fresh = builtin_scenes(train_per_class=2, test_per_class=1, size=64, seed=99).train
    images, labels = fresh.pixels(size=64), fresh.labels
    own = int((audited_data.train.labels == 2).nonzero()[0])
    images[(labels == 2).nonzero()[0]] = dihedral(audited_data.train.pixels([own], size=64), 3)
    return DistilledSet(images, labels, fresh.classes)
