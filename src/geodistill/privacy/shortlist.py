"""The training images most similar to each of some images: exact, although most pairs are not compared in full.

Every image is a set of vectors of norm 1. The similarity of two images is the highest inner product of a vector of one
with a vector of the other. Let P be the projection on the first principal components. The Cauchy-Schwarz inequality for
the rest gives <a, b> <= <Pa, Pb> + |a - Pa| |b - Pb|. This bound is itself an inner product, of vectors a fifth as
long. Only pairs with a bound above the least similarity on the shortlist are compared in full. The more training images
have been seen, the fewer these are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from geodistill.processes import processes

# Principal components of the bound, and largest number of vectors that they are computed from.
_COMPONENTS, _LEARNED_FROM = 63, 8192
# Training images in one matrix product, and pairs that are compared in full together.
_BLOCK = 256
# Rounding error of an inner product.
_ROUNDING = 1e-4


class Bound:
    """A map from vectors of norm 1 to short ones, whose inner products are no lower; see the module.

    vectors: float32 [n, d], typical ones. They decide how close the bound is, and never whether it holds.

    >>> a, b = torch.nn.functional.normalize(torch.randn(2, 500, 200), dim=2)
    >>> short = Bound(a)
    >>> bool(((short(a) * short(b)).sum(1) >= (a * b).sum(1) - 1e-4).all())
    True
    """

    def __init__(self, vectors: Tensor) -> None:
        typical = vectors[:: max(1, len(vectors) // _LEARNED_FROM)]
        self._basis = torch.linalg.eigh(typical.T @ typical).eigenvectors[:, -_COMPONENTS:]

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the short vectors float32 [..., k] of `vectors` [..., d]."""
        kept = vectors @ self._basis
        return torch.cat([kept, (1 - kept.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()], dim=-1)


class Best:
    """The `length` training images with the highest similarity to each of `count` images so far.

    `values` float32 [n, k], the highest first, and `places` int64 [n, k], the indices of the training images.
    """

    def __init__(self, count: int, length: int) -> None:
        self._length = length
        self.values, self.places = torch.empty(count, 0), torch.empty(count, 0, dtype=torch.int64)

    @property
    def full(self) -> bool:
        """Return whether there are `length` training images for each image."""
        return self.values.shape[1] == self._length

    def add(self, similarities: Tensor, first: int) -> None:
        """Take the training images from number `first` on into account, by their `similarities` float32 [n, m]."""
        places = torch.arange(first, first + similarities.shape[1]).expand(len(similarities), -1)
        self._keep(torch.cat([self.values, similarities], dim=1), torch.cat([self.places, places], dim=1))

    def _keep(self, values: Tensor, places: Tensor) -> None:
        self.values, order = values.topk(min(self._length, values.shape[1]), dim=1)
        self.places = places.gather(1, order)

    @staticmethod
    def gather(several: "Sequence[Best]") -> None:
        """Put together what each process has found; several processes must all call this."""
        parts = processes().gathered([(one.values, one.places) for one in several])
        for one, own in zip(several, zip(*parts, strict=True), strict=True):
            values, places = zip(*own, strict=True)
            one._keep(torch.cat(values, dim=1), torch.cat(places, dim=1))


class Shortlist:
    """The `length` training images most similar to each of n images; training images are given block by block.

    Several processes may each give other blocks.

    own: float32 [v, n, d], v vectors of norm 1 of each image. bound: of vectors of these kinds.
    """

    def __init__(self, own: Tensor, bound: Bound, length: int) -> None:
        self._own, self._short, self._best = own, bound(own), Best(own.shape[1], length)

    def add(self, real: Tensor, short: Tensor, first: int) -> None:
        """Compare the images with training images [m, w, d], number `first` and those after it, w vectors each.

        short: their bound.
        """
        for block, shortened in zip(real.split(_BLOCK), short.split(_BLOCK), strict=True):
            self._best.add(self._similarities(block, shortened), first)
            first += len(block)

    @staticmethod
    def found(lists: "Sequence[Shortlist]") -> list[Tensor]:
        """Return for each list the training images on it, int64 [n, k], the most similar first.

        Several processes must all call this; what each has found so far is put together.
        """
        Best.gather([one._best for one in lists])
        return [one._best.places for one in lists]

    def _similarities(self, real: Tensor, short: Tensor) -> Tensor:
        """Return float32 [n, m], minus infinity for pairs that the bound keeps off the list."""
        if not self._best.full:
            return _highest(self._own, real)
        possible = _highest(self._short, short) > self._best.values[:, -1:] - _ROUNDING
        found = torch.full(possible.shape, -torch.inf)
        for pairs in possible.nonzero().split(_BLOCK):
            images, others = pairs.unbind(1)
            products = self._own[:, images].transpose(0, 1) @ real[others].transpose(1, 2)
            found[images, others] = products.amax((1, 2))
        return found


def _highest(own: Tensor, real: Tensor) -> Tensor:
    """Return the highest inner product, float32 [n, m], of vectors `own` [v, n, d] with vectors `real` [m, w, d]."""
    columns = real.transpose(0, 1).flatten(0, 1).T
    best = torch.full((own.shape[1], len(real)), -torch.inf)
    # One orientation at a time, training images last: the products stay in the cache, and maxima are vectorised.
    for view in own:
        best = torch.maximum(best, (view @ columns).view(len(view), -1, len(real)).amax(1))
    return best
