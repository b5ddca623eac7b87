"""Exact k-nearest-neighbor search by faiss (the only file that imports it): faiss-gpu on CUDA tensors, else the CPU build.

Without a GPU driver the GPU build's search aborts the whole process, so every GPU call is guarded. The GPU path follows
faiss's documented interface to torch tensors and has not been run by us on a GPU: not measured.
"""

import functools
import logging
from typing import Any

import torch
from torch import Tensor


class MissingFaiss(ImportError, ValueError):
    """faiss is not installed, or its build does not fit the device."""


@functools.cache
def _faiss() -> Any:
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells of every instruction set it tries
    try:
        import faiss
        import faiss.contrib.torch_utils
    except ImportError as error:
        raise MissingFaiss(
            "critic.search = 'faiss' needs faiss: install the extra `cpu` or `gpu` of this package, or set "
            "critic.search=torch"
        ) from error
    return faiss


@functools.cache
def _gpu_resources(device_index: int) -> Any:
    faiss = _faiss()
    if not (hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > device_index):
        raise MissingFaiss(
            f"critic.search = 'faiss' on cuda:{device_index} needs faiss-gpu and a driver; found the CPU build or no "
            "device. Install the extra `gpu`, or set critic.search=torch"
        )
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(64 << 20)
    return resources


def search_faiss(queries: Tensor, rows: Tensor, num_neighbors: int) -> Tensor:
    """Indices [q, k] of the k rows of `rows` [n, F] nearest to each query [q, F], nearest first; float32.

    CUDA tensors are searched where they lie, on torch's current stream, without a copy to the host.
    """
    faiss = _faiss()
    queries, rows = queries.float().contiguous(), rows.float().contiguous()
    if queries.is_cuda:
        resources = _gpu_resources(queries.device.index or 0)
        return faiss.knn_gpu(resources, queries, rows, num_neighbors, device=queries.device.index or 0)[1]
    if faiss.omp_get_max_threads() != torch.get_num_threads():
        faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss.knn(queries, rows, num_neighbors)[1]
