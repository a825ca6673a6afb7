"""MGD3 (Chan-Santiago et al., ICML 2025): the prior as it is, guided towards k-means modes of the latents.

    z_{t-1} ← z_{t-1} + λ σ_t (m - ẑ0)        at the first 25 of 50 steps, λ = 0.1

m is the mode, σ_t the deviation of DDPM's reverse step (`prior.guidance.towards_mode`). Unlike in DPD's rule, the gap
is not brought to unit length. Constants of the paper: λ, 25 and 50 steps, and classifier-free guidance 4, that of its
main experiments. Deviations: DDIM, which adds no noise of its own, in place of DDPM's sampler, and class prompts in
place of class embeddings.
"""

from geodistill.config import Config, SamplingSettings
from geodistill.distilled import DistilledSet
from geodistill.methods.stages import centroids, class_prompts, draw, encode, keep_candidates, make_base, slot_labels
from geodistill.prior.guidance import ModeGuidance
from geodistill.run import Run
from geodistill.scenes.scenes import Scenes

GUIDANCE, STEPS = 4.0, 50
MODES = ModeGuidance(scale=0.1, steps=25)


def make(scenes: Scenes, config: Config, run: Run) -> DistilledSet:
    """Return `config.ipc` images of each class, each guided towards one of its modes."""
    config = paper(config)
    prior = make_base(scenes, config, run)
    latents = encode(scenes, prior, config, run)
    modes = centroids(latents, scenes, config, run)
    texts = class_prompts(scenes, slot_labels(scenes, config))
    candidates = draw(prior, modes, texts, config, run, after=["latents", "prototypes"], modes=MODES)
    return keep_candidates("mgd3", candidates, texts, prior, scenes, config, run)


def paper(config: Config) -> Config:
    """Return `config` with the paper's sampling."""
    sampling = SamplingSettings(
        follow="none",
        guidance=GUIDANCE,
        steps=STEPS,
        solver="ddim",
        candidates=1,
        batch=config.sampling.batch,
    )
    return config.model_copy(update={"sampling": sampling})
