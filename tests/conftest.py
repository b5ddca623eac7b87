"""One thread in every test: the bits of a product depend on it, and the machine is shared."""

import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
for folder in ("exact", "statistical", "distributed"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
