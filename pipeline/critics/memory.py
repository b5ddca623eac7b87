"""What the critic remembers: the previous step's data and particle features of all workers, in block order."""

from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """Features [num_data + num_particles, F]: data rows first, then particle i of the run at row num_data + i."""

    features: Tensor
    num_data: int

    @property
    def num_particles(self) -> int:
        """Rows that came from the model."""
        return len(self.features) - self.num_data

    def data_shares(self, rows: Tensor) -> Tensor:
        """Class weights of memory rows: +1/num_data for data, -1/num_particles for particles, shaped like `rows`.

        With equal numbers this is plain counting; otherwise each class as a whole weighs the same.
        """
        data = torch.tensor(1 / self.num_data, dtype=self.features.dtype, device=rows.device)
        particle = torch.tensor(-1 / self.num_particles, dtype=self.features.dtype, device=rows.device)
        return torch.where(rows < self.num_data, data, particle)
