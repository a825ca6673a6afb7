"""Computing ahead: the next value is computed in a thread while the current one is used."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Prefetch(Generic[K, T]):
    """A function whose value for the following key is computed in a thread as soon as one key is asked for.

    Args:
        compute: the function. Its errors are raised when the value is asked for.
        following: returns the key that will be asked for after this one, or None after the last.

    >>> squares = Prefetch(lambda n: n * n, lambda n: n + 1 if n < 3 else None)
    >>> [squares(n) for n in (1, 2, 3)]
    [1, 4, 9]
    """

    def __init__(self, compute: Callable[[K], T], following: Callable[[K], K | None]) -> None:
        self._compute, self._following, self._thread = compute, following, ThreadPoolExecutor(1)
        self._begun: dict[K, Future[T]] = {}

    def __call__(self, key: K) -> T:
        """Return the value for `key`."""
        own = self._begun.pop(key, None) or self._thread.submit(self._compute, key)
        coming = self._following(key)
        self._begun = {} if coming is None else {coming: self._thread.submit(self._compute, coming)}
        return own.result()
