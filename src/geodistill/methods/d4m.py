"""D4M (Su et al., CVPR 2024): k-means centroids in latent space as prototypes, denoised by the prior as it is.

Constants of the paper: a centroid is noised to strength 0.7, then denoised under the class prompt with classifier-free
guidance 8 in 50 steps (of which the last 35 are done); nothing is fine-tuned. Deviations: full k-means with ten
restarts in place of mini-batches, DDIM as the solver, and hard labels, as for every method here: the paper's soft
labels belong to a protocol.
"""

from geodistill.config import Config, SamplingSettings
from geodistill.distilled import DistilledSet
from geodistill.methods.stages import centroids, class_prompts, draw, encode, keep_candidates, make_base, slot_labels
from geodistill.run import Run
from geodistill.scenes.scenes import Scenes

STRENGTH, GUIDANCE, STEPS = 0.7, 8.0, 50


def make(scenes: Scenes, config: Config, run: Run) -> DistilledSet:
    """Return `config.ipc` images of each class, each drawn from one of its centroids."""
    config = paper(config)
    prior = make_base(scenes, config, run)
    latents = encode(scenes, prior, config, run)
    prototypes = centroids(latents, scenes, config, run)
    texts = class_prompts(scenes, slot_labels(scenes, config))
    candidates = draw(prior, prototypes, texts, config, run, after=["latents", "prototypes"])
    return keep_candidates("d4m", candidates, texts, prior, scenes, config, run)


def paper(config: Config) -> Config:
    """Return `config` with the paper's sampling."""
    sampling = SamplingSettings(
        follow="start",
        strength=STRENGTH,
        guidance=GUIDANCE,
        steps=STEPS,
        solver="ddim",
        candidates=1,
        batch=config.sampling.batch,
    )
    return config.model_copy(update={"sampling": sampling})
