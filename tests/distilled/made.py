"""A small distilled set, and the contents of a folder."""

import hashlib

import torch

from geodistill.distilled import DistilledSet

CLASSES = ("Beach", "Dense Residential", "Río_train")


def make_set(count=6, size=8):
    images = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.tensor([k % 3 for k in range(count)])
    records = tuple({"seed": k, "scores": {"margin": 0.5 * k}, "description": f"é {k}"} for k in range(count))
    return DistilledSet(images, labels, CLASSES, records, {"method": "dpd", "config": {"ipc": 2}})


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }
