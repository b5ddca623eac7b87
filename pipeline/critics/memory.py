"""The critic's memory: features of the data rows and particles of the update before, of all workers, in block order."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class FeatureEncoding(NamedTuple):
    """The encoding of features for communication, as bytes uint8 [n, width]."""

    num_features: int
    dtype: torch.dtype
    """Type of the features as the critic sees them."""
    form: Literal["bits", "bfloat16", "float32"]
    """bits: states in {0, 1}, eight to a byte, exact; bfloat16: half the bytes, rounded to 8 bits; float32: as they are."""

    def pack(self, features: Tensor) -> Tensor:
        """Bytes of features [n, F]."""
        if self.form == "float32":
            return features.contiguous().view(torch.uint8)
        if self.form == "bfloat16":
            return features.to(torch.bfloat16).view(torch.uint8)
        padded = F.pad(features.to(torch.uint8), (0, -self.num_features % 8))
        return (padded.view(len(features), padded.shape[1] // 8, 8) << self._places(features.device)).sum(
            2, dtype=torch.uint8
        )

    def unpack(self, packed: Tensor) -> Tensor:
        """The features [n, F]: those that were packed, rounded with bfloat16."""
        if self.form == "float32":
            return packed.view(self.dtype)
        if self.form == "bfloat16":
            return packed.view(torch.bfloat16).to(self.dtype)
        bits = (packed[:, :, None] >> self._places(packed.device)) & 1
        return bits.flatten(1)[:, : self.num_features].to(self.dtype)

    @staticmethod
    def _places(device: torch.device) -> Tensor:
        return torch.arange(8, dtype=torch.uint8, device=device)


class Memory(NamedTuple):
    """Features [num_data + num_particles, F]: data rows first, then particle i of the run at row num_data + i."""

    features: Tensor
    num_data: int

    @property
    def num_particles(self) -> int:
        """Rows that came from the model."""
        return len(self.features) - self.num_data


def class_shares(rows: Tensor, num_data: int, num_particles: int, dtype: torch.dtype) -> Tensor:
    """Class weights of memory rows: +1/num_data for data, -1/num_particles for particles, shaped like `rows`.

    With equal numbers this is plain counting; otherwise each class as a whole weighs the same.
    """
    data = torch.full((), 1 / num_data, dtype=dtype, device=rows.device)
    particle = torch.full((), -1 / num_particles, dtype=dtype, device=rows.device)
    return torch.where(rows < num_data, data, particle)
