"""The share of generated images in which OpenCV's stock face detector finds a face.

A count that no training of ours has touched, to print beside the count a person makes. It is a low bar: it sees the
layout of a face, so it passes blur, double exposures and one face repeated; read it with the duplicates and the recall
of `images.py`.
The only file that imports cv2, and only when called: OpenCV is a benchmark's dependency, not the library's.
"""

from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

CASCADE = "haarcascade_frontalface_alt2.xml"
# Chosen on 300 aligned CelebA photographs, checked on 1,000 others: see `face_share`. The other frontal cascades found
# as many photographs and more upside-down ones, or (alt_tree) far fewer photographs.
UPSCALE = 3  # the cascade's window is 20 pixels; steps between window sizes are too coarse on 64x64 itself
SCALE_FACTOR = 1.1
MIN_NEIGHBORS = 5
MIN_FACE = 0.45  # of the image's side: an aligned face fills it, and a small match is texture


class MissingDetector(RuntimeError):
    """OpenCV, or its face cascade, is not installed here."""


class FaceShare(NamedTuple):
    """In how many images a face was found."""

    share: float
    num_found: int
    num_images: int
    detector: str
    """Version, cascade and settings: shares of different detectors do not compare."""


def face_share(images: np.ndarray | Tensor) -> FaceShare:
    """Return the share of images in which a Haar cascade finds at least one frontal face.

    Measured on 1,000 aligned CelebA photographs (centre crop 148, resized to 64): 0.950; the same upside down 0.046,
    with left and right half exchanged 0.001, averages of two photographs 0.99. Uniform noise, smooth noise and flat
    images: 0. About 2 ms an image on one thread: OpenCV's own pool is off during the call, so that it does not compete
    with other workers.

    Args:
        images: [n, 64, 64, 3], uint8, RGB, on the CPU.

    Returns:
        Share, counts and the detector's description. Deterministic.

    Raises:
        MissingDetector: without OpenCV 4 and its cascades.
        ValueError: on another shape or type, or no images.
    """
    pixels = np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (64, 64, 3) or len(pixels) == 0:
        raise ValueError(
            f"images are {pixels.dtype} of shape {pixels.shape}; the detector was calibrated on uint8 [n, 64, 64, 3] "
            "with n >= 1: give decoded images as uint8 in RGB, channels last"
        )
    cv2, cascade = _load_detector()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        num_found = sum(_has_face(cv2, cascade, image) for image in pixels)
    finally:
        cv2.setNumThreads(threads)
    return FaceShare(
        share=num_found / len(pixels),
        num_found=num_found,
        num_images=len(pixels),
        detector=f"OpenCV {cv2.__version__} {CASCADE}, x{UPSCALE} cubic, scaleFactor {SCALE_FACTOR}, "
        f"minNeighbors {MIN_NEIGHBORS}, minSize {MIN_FACE} of the side",
    )


def _has_face(cv2: ModuleType, cascade: Any, image: np.ndarray) -> bool:
    gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    gray = cv2.resize(gray, None, fx=UPSCALE, fy=UPSCALE, interpolation=cv2.INTER_CUBIC)
    side = int(MIN_FACE * gray.shape[0])
    return len(cascade.detectMultiScale(gray, SCALE_FACTOR, MIN_NEIGHBORS, minSize=(side, side))) > 0


def _load_detector() -> tuple[ModuleType, Any]:
    """Return the cv2 module and the loaded cascade, or say what to install."""
    remedy = 'install it with `pip install "beam-pipeline[bench]"`'
    try:
        import cv2
    except ImportError as error:
        raise MissingDetector(
            f"the face detector needs OpenCV 4, and cv2 cannot be imported ({error}): {remedy}"
        ) from error
    version = getattr(cv2, "__version__", "of unknown version")
    folder = getattr(getattr(cv2, "data", None), "haarcascades", None)
    # OpenCV 5 moved the cascades out of its main modules.
    if folder is None or not hasattr(cv2, "CascadeClassifier") or not (Path(folder) / CASCADE).is_file():
        raise MissingDetector(f"OpenCV {version} has no {CASCADE} (only OpenCV 4 ships it): {remedy}")
    cascade = cv2.CascadeClassifier(str(Path(folder) / CASCADE))
    if cascade.empty():
        raise MissingDetector(f"OpenCV {version} could not read its {CASCADE}: {remedy}")
    return cv2, cascade
