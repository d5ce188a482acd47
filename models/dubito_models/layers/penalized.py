"""What a module adds to the loss that it is trained by."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Penalized(ABC):
    """A module with a term of its own in the loss; training adds those of all modules of a network."""

    @abstractmethod
    def penalty(self, rows: int) -> Tensor:
        """Return a scalar, in nats per row of a training set of `rows` rows, to add to the mean log-loss."""
