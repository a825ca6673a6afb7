"""The base `aid` of geodistill: a small latent diffusion model of overhead scenes, trained on AID, 64 px."""

from pathlib import Path

# The pipeline's folder, which the entry point of group `geodistill.bases` names.
FOLDER = Path(__file__).parent / "base"
