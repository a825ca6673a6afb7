"""The scenes as the choice among candidates sees them: features of each class, read from files a part at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from geodistill.latent_teacher import LatentTeacher, predict
from geodistill.run import Stored, subset
from geodistill.scenes.splits import fair_share
from geodistill.stages.learned import MOST


@dataclass(frozen=True)
class Real:
    """The scenes as the selection sees them: latents [N, C, h, w], features [N, 1280] if any, and labels int64 [N].

    Their features are those of the teacher, followed by the known ones.
    """

    teacher: LatentTeacher
    latents: Stored
    known: Stored | None
    labels: Tensor

    def means(self) -> Tensor:
        """Return the mean features of each class, [classes, D], over all its scenes."""
        counts = torch.bincount(self.labels)
        sums = torch.zeros(len(counts), 1, dtype=torch.float64)
        for part in torch.arange(len(self.labels)).split(MOST):
            features, labels = self._features(part), self.labels[part]
            own = torch.zeros(len(counts), features.shape[1], dtype=torch.float64)
            for label in labels.unique():
                same = labels == label
                # A mean times the number of scenes: exact in float64, so one part gives the float32 mean itself.
                own[label] = features[same].mean(dim=0).double() * int(same.sum())
            sums = sums + own
        return (sums / counts[:, None]).float()

    def of_class(self, label: int, seed: int) -> Tensor:
        """Return the features [m, D] of the scenes of a class, of a fair share if there are too many scenes."""
        part = fair_share(self.labels, MOST, seed)
        return self._features(part[self.labels[part] == label])

    def _features(self, among: Tensor) -> Tensor:
        features = predict(self.teacher, subset(self.latents, among))[1]
        return features if self.known is None else torch.cat([features, self.known[among]], dim=1)
