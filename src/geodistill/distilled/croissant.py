"""Croissant 1.0 metadata of a set.

Written by hand: mlcroissant would bring 29 packages (pandas, rdflib, a git client) for one fixed file. Where it is
installed, a test validates the file with it.
"""

import hashlib
from typing import Any

from geodistill.distilled.about import title
from geodistill.distilled.folder import MANIFEST

# The context required by the Croissant 1.0 specification: each term without a line of its own is cr:<term>.
_CROISSANT_TERMS = (
    "citeAs column extract field fileProperty fileObject fileSet format includes isLiveDataset "
    "jsonPath key md5 parentField path recordSet references regex repeated replace separator source subField transform"
)
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    **{term: f"cr:{term}" for term in _CROISSANT_TERMS.split()},
}


def croissant(manifest: str, images: int, classes: int, suffix: str) -> dict[str, Any]:
    """Return Croissant 1.0 metadata (https://docs.mlcommons.org/croissant/docs/croissant-spec.html) as JSON-LD.

    `manifest` is the text of the set's manifest, `suffix` that of its image files.
    """
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "distilled-overhead-scenes",
        "description": f"{title(classes)}: {images} images made or chosen by geodistill.",
        "license": "As the source data",
        "version": "1.0.0",
        "distribution": [_manifest_object(manifest), _image_files(suffix)],
        "recordSet": [_scene_records(suffix)],
    }


def _manifest_object(manifest: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": MANIFEST,
        "name": MANIFEST,
        "contentUrl": MANIFEST,
        "encodingFormat": "application/json",
        "sha256": hashlib.sha256(manifest.encode()).hexdigest(),
    }


def _image_files(suffix: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "images",
        "name": "images",
        "encodingFormat": {".png": "image/png", ".tif": "image/tiff"}[suffix],
        "includes": f"*/*{suffix}",
    }


def _scene_records(suffix: str) -> dict[str, Any]:
    image = {"fileSet": {"@id": "images"}, "extract": {"fileProperty": "content"}}
    label = {
        "fileSet": {"@id": "images"},
        "extract": {"fileProperty": "fullpath"},
        "transform": {"regex": f"([^/]+)/[^/]+\\{suffix}$"},
    }
    return {
        "@type": "cr:RecordSet",
        "@id": "scenes",
        "name": "scenes",
        "field": [
            {
                "@type": "cr:Field",
                "@id": "scenes/image",
                "name": "image",
                "dataType": "sc:ImageObject",
                "source": image,
            },
            {"@type": "cr:Field", "@id": "scenes/class", "name": "class", "dataType": "sc:Text", "source": label},
        ],
    }
