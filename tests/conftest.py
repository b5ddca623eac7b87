"""One thread in every test: the bits of a product depend on it, and the machine is shared. Ray's token before Ray."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from jobs.ray_session import prepare_environment

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported; the kernels' tests then run on the CPU
_token = tempfile.mkdtemp()
atexit.register(shutil.rmtree, _token, ignore_errors=True)
prepare_environment(Path(_token))  # Ray reads it when a test module imports it, before any test runs
for folder in ("exact", "statistical", "distributed", "jobs"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
