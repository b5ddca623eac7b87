"""FID against its formula, with a small TorchScript network that has the interface of the real one (which is not here)."""

import warnings
from pathlib import Path

import pytest
import torch

from pipeline.metrics.images import frechet_distance
from pipeline.metrics.inception import InceptionError, fid, find_inception, inception_features


class Means(torch.nn.Module):
    """Mean of each color, or with `return_features=False` something of another size."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        means = images.float().mean([2, 3])
        return means if return_features else means[:, :1]


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("network") / "means.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Means()).save(str(file))
    return file


def pictures(seed: int, low: int) -> torch.Tensor:
    return torch.randint(low, 256, (120, 8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_features_are_the_networks_and_fid_their_frechet_distance(network):
    real, generated = pictures(0, 0), pictures(1, 60)
    means = real.float().mean([1, 2])
    torch.testing.assert_close(inception_features(real, network), means)
    expected = frechet_distance(means, generated.float().mean([1, 2]))
    assert fid(real, generated, network) == pytest.approx(expected, rel=1e-6)
    assert expected > 2500  # the means differ by 30 in each color
    assert fid(real, real, network) == pytest.approx(0, abs=1e-6)


def test_wrong_pictures_and_files(network, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="equally many"):
        fid(pictures(0, 0), pictures(0, 0)[:60], network)
    other = tmp_path / "other.pt"
    other.write_bytes(b"no network")
    with pytest.raises(InceptionError, match=r"other\.pt is not the TorchScript"):
        inception_features(pictures(0, 0), other)
    monkeypatch.delenv("INCEPTION", raising=False)
    assert find_inception() is None
    monkeypatch.setenv("INCEPTION", str(tmp_path / "nowhere"))
    with pytest.raises(InceptionError, match="INCEPTION="):
        find_inception()
    monkeypatch.setenv("INCEPTION", str(network))
    assert find_inception() == network
