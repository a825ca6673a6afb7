"""D4M (Su et al., CVPR 2024): k-means centroids in latent space as prototypes, denoised by the prior as it is.

Constants of the paper: a centroid is noised to strength 0.7 and denoised under the class prompt with classifier-free
guidance 8, on a schedule of 50 steps (the last 35 are done). Nothing is fine-tuned. Deviations: full k-means with ten
restarts instead of mini-batches, DDIM as the solver, and hard labels, as for every method here; the paper's soft labels
belong to an evaluation protocol.
"""

from geodistill.config import Config, SamplingSettings
from geodistill.distilled import DistilledSet
from geodistill.prior.guidance import ModeGuidance
from geodistill.provenance import Made, derived
from geodistill.stages.base import load_base
from geodistill.stages.candidates import Slots, draw, slot_labels
from geodistill.stages.context import Context
from geodistill.stages.descriptions import class_prompts
from geodistill.stages.distilled import keep_candidates
from geodistill.stages.latents import encode
from geodistill.stages.noise import in_secret
from geodistill.stages.prototypes import centroids

STRENGTH, GUIDANCE, STEPS = 0.7, 8.0, 50


def make(context: Context) -> Made[DistilledSet]:
    """Return `config.ipc` images of each class, each drawn from one of the class's centroids."""
    return from_centroids(context.having(paper(context.config)))


def from_centroids(context: Context, modes: ModeGuidance | None = None) -> Made[DistilledSet]:
    """Return the set that the prior draws without fine-tuning; each image follows a k-means centroid (see `draw`)."""
    prior = load_base(context)
    latents = encode(context, prior)
    found = centroids(context, latents)
    texts = class_prompts(context.scenes, slot_labels(context.scenes, context.config))
    slots = derived(lambda: Slots(texts, found.value), latents, found)
    return keep_candidates(context, prior, draw(in_secret(context), prior, slots, modes), texts)


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
