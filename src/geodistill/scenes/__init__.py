"""Labelled scenes: reading, splitting, and drawing the built-in ones."""

from geodistill.scenes.folder import open_scenes, open_unlabelled
from geodistill.scenes.images import read_image, to_square_tensor
from geodistill.scenes.procedural import builtin_scenes, draw_scene, write_scenes
from geodistill.scenes.scenes import SceneData, Scenes
from geodistill.scenes.splits import hold_out

__all__ = [
    "SceneData",
    "Scenes",
    "builtin_scenes",
    "draw_scene",
    "hold_out",
    "open_scenes",
    "open_unlabelled",
    "read_image",
    "to_square_tensor",
    "write_scenes",
]
