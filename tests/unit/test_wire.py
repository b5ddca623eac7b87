"""Features on their way between workers: bits and float32 come back exactly, bfloat16 rounded."""

import pytest
import torch

from pipeline.critics.memory import FeatureEncoding


@pytest.mark.parametrize("num_features", [1, 7, 8, 11, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_travel_as_bits(num_features: int, dtype: torch.dtype) -> None:
    states = torch.rand(13, num_features, generator=torch.Generator().manual_seed(0)).lt(0.3).to(dtype)
    wire = FeatureEncoding(num_features, dtype, "bits")
    packed = wire.pack(states)
    assert packed.dtype == torch.uint8 and packed.shape == (13, -(-num_features // 8))
    assert torch.equal(wire.unpack(packed), states) and wire.unpack(packed).dtype == dtype
    assert wire.unpack(wire.pack(states[:0])).shape == (0, num_features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_travel_as_they_are_or_rounded(dtype: torch.dtype) -> None:
    means = torch.rand(13, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    whole, half = FeatureEncoding(11, dtype, "float32"), FeatureEncoding(11, dtype, "bfloat16")
    assert torch.equal(whole.unpack(whole.pack(means)), means)
    assert half.pack(means).shape == (13, 22)
    assert torch.equal(half.unpack(half.pack(means)), means.to(torch.bfloat16).to(dtype))
    assert half.unpack(half.pack(means[:0])).shape == (0, 11)
