"""FID: the Frechet distance of Inception features, where the network's file is on disk.

The network is neither a dependency nor fetched. Its file is the TorchScript archive `inception-2015-12-05.pt`, the original
weights as published with StyleGAN2-ADA; the variable INCEPTION names it. TorchScript is a program: take it from its authors
only. Without the file a table says NOT_COMPUTED.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from pipeline.metrics.images import frechet_distance

VARIABLE = "INCEPTION"
NOT_COMPUTED = f"FID not computed: {VARIABLE} does not name the network's file (inception-2015-12-05.pt)"
_BATCH = 50  # pictures at a time; inside they are enlarged to 299x299


class InceptionError(ValueError):
    """The file that INCEPTION names cannot be used."""


def find_inception() -> Path | None:
    """The file that the variable INCEPTION names; None where it is not set.

    Raises:
        InceptionError: when it names no file.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    file = Path(named)
    if not file.is_file():
        raise InceptionError(
            f"{VARIABLE}={named} is no file; unset it to go without FID, or name inception-2015-12-05.pt"
        )
    return file


def fid(real: Tensor, generated: Tensor, file: Path) -> float:
    """Frechet inception distance of equally many pictures uint8 [n, s, s, 3]; lower is better.

    With fewer pictures than features (2 048) the covariances are singular and the value is far above its limit: it compares
    only with values of as many pictures.

    Raises:
        InceptionError: when the file is not the network.
        ValueError: on unequal counts or another type.
    """
    if real.shape != generated.shape or real.dtype != torch.uint8 or real.shape[3:] != (3,):
        raise ValueError(
            f"pictures are {real.dtype} {tuple(real.shape)} and {generated.dtype} {tuple(generated.shape)}; expected uint8 "
            "[n, s, s, 3], equally many of each"
        )
    return frechet_distance(*(inception_features(pixels, file) for pixels in (real, generated)))


@torch.no_grad()
def inception_features(pixels: Tensor, file: Path) -> Tensor:
    """Features [n, F] of pictures uint8 [n, s, s, 3]: the network's last pooling layer, F = 2 048.

    Raises:
        InceptionError: when the file is not the network.
    """
    try:
        network = torch.jit.load(str(file), map_location=pixels.device).eval()  # type: ignore[no-untyped-call]
        batches = pixels.permute(0, 3, 1, 2).split(_BATCH)
        return torch.cat([network(batch.contiguous(), return_features=True) for batch in batches])
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise InceptionError(f"{file} is not the TorchScript Inception network that is expected: {first}") from error
