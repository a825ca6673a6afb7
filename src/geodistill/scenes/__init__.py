"""Labelled scenes: reading, splitting, and drawing the built-in ones."""

from typing import TYPE_CHECKING

from geodistill.lazy import lazy_names

if TYPE_CHECKING:
    from geodistill.scenes.folder import open_scenes, open_unlabelled
    from geodistill.scenes.images import to_square_tensor
    from geodistill.scenes.items import open_dataset
    from geodistill.scenes.procedural import builtin_scenes, draw_scene, write_scenes
    from geodistill.scenes.reading import Reading, read_image
    from geodistill.scenes.scenes import SceneData, Scenes
    from geodistill.scenes.splits import hold_out
    from geodistill.scenes.tiles import cut_tiles

__all__ = [
    "Reading",
    "SceneData",
    "Scenes",
    "builtin_scenes",
    "cut_tiles",
    "draw_scene",
    "hold_out",
    "open_dataset",
    "open_scenes",
    "open_unlabelled",
    "read_image",
    "to_square_tensor",
    "write_scenes",
]

# Drawing the built-in scenes does not wait for torch.
__getattr__ = lazy_names(
    __name__,
    {
        "folder": ("open_scenes", "open_unlabelled"),
        "images": ("to_square_tensor",),
        "items": ("open_dataset",),
        "procedural": ("builtin_scenes", "draw_scene", "write_scenes"),
        "reading": ("Reading", "read_image"),
        "scenes": ("SceneData", "Scenes"),
        "splits": ("hold_out",),
        "tiles": ("cut_tiles",),
    },
)
