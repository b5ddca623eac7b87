"""A stand-in for CelebA: varied parametric portraits, drawn from a seed, in CelebA's own files and layout.

CelebA cannot be downloaded everywhere, and every step of the pipeline should run and be tested without it. This writes

    <out_dir>/img_align_celeba/000001.jpg ...    178x218 RGB JPEG, eyes where CelebA's alignment puts them
    <out_dir>/list_eval_partition.txt            "000001.jpg 0" per line; 0 train, 1 validation, 2 test: 80/10/10
    <out_dir>/synthetic_faces.json               written last: the arguments and a sha256 over the images

so that one reader reads both. Picture number i depends on (seed, i) alone. Its traits are correlated as in people
(age with gray hair, wrinkles and glasses; long hair with lipstick; beards with strong jaws and thick brows), so that a
model has structure to learn. Equal arguments give equal bytes on one machine; another processor or JPEG library may
round a pixel differently.

    python -m data_prep.synthetic_faces --out data/faces --count 4000 --seed 0
"""

import argparse
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.face_drawing import Face, render

GENERATOR_VERSION = 1  # raise it whenever a picture changes
IMAGES = "img_align_celeba"
PARTITION = "list_eval_partition.txt"
MARKER = "synthetic_faces.json"
MIN_COUNT = 10  # the smallest count with a picture in each of the three parts
MAX_COUNT = 999_999  # six digits, as CelebA names its files
JPEG_QUALITY = 92

# sRGB values from light to dark; a face's tone lies between two neighbors.
SKIN = np.array([(250, 222, 204), (240, 200, 172), (222, 172, 138), (190, 134, 98), (146, 96, 66), (100, 66, 48)]) / 255
IRIS = np.array([(70, 42, 24), (104, 66, 34), (112, 104, 62), (84, 122, 88), (88, 126, 164), (126, 138, 148)]) / 255
HAIR = {"black": (26, 22, 22), "brown": (70, 46, 32), "light brown": (122, 86, 56), "blond": (206, 168, 112)}
HAIR |= {"red": (140, 66, 34), "gray": (172, 168, 166)}
Color = tuple[float, float, float]


def linear(color: np.ndarray) -> Color:
    """Returns a stored color in [0, 1] as linear light."""
    red, green, blue = np.clip(color, 0.0, 1.0) ** 2
    return float(red), float(green), float(blue)


def any_color(rng: np.random.Generator, dull: float) -> Color:
    """Returns a random color; `dull` in [0, 1] moves it toward gray."""
    color, value = rng.uniform(0.05, 0.95, 3), rng.uniform(0.12, 0.92)
    return linear(value * ((1.0 - dull) * color / color.max() + dull))


def sample_face(rng: np.random.Generator) -> Face:
    """Returns a random face: a few hidden factors (sex, age, complexion, mood) move many traits together."""

    def normal(mean: float, std: float, low: float, high: float) -> float:
        return float(np.clip(rng.normal(mean, std), low, high))

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    # sex and age in [0, 1], continuous; dark: 0 lightest .. 1 darkest complexion
    sex = float(rng.beta(0.35, 0.35))  # 0 masculine .. 1 feminine
    age = float(rng.beta(1.5, 2.2))
    dark = float(rng.beta(1.0, 1.5))
    mood = normal(0.42 + 0.12 * sex, 0.38, -0.30, 1.0)
    made_up = sex * float(rng.beta(1.2, 1.4)) * (1.0 - 0.3 * age)

    tone = dark * (len(SKIN) - 1)
    low = min(int(tone), len(SKIN) - 2)
    skin = SKIN[low] + (tone - low) * (SKIN[low + 1] - SKIN[low])
    skin = skin * (1.0 + rng.normal(0, 0.025, 3)) + np.array((0.02, 0.0, -0.02)) * rng.normal()

    shares = np.array((0.25 + 1.6 * dark, 0.75, 0.55 * (1 - dark), 0.75 * (1 - dark) ** 2, 0.22 * (1 - dark) ** 2, 0.02))
    shares[5] += 2.5 * max(age - 0.5, 0.0)
    name = list(HAIR)[rng.choice(6, p=shares / shares.sum())]
    hair = np.array(HAIR[name]) / 255 * rng.uniform(0.8, 1.2) + rng.normal(0, 0.012, 3)
    hair += max(age - 0.45, 0.0) * rng.uniform(0, 0.9) * (np.array(HAIR["gray"]) / 255 - hair)

    # hair: bald, short, medium or long
    bald = chance((1 - sex) * (0.04 + 0.32 * age**2))
    long = chance(0.03 + 0.82 * sex**1.5)
    curl = float(rng.beta(0.5, 2.5 - 1.5 * dark)) if chance(0.35 + 0.4 * dark) else 0.0
    bangs = not bald and chance(0.08 + 0.18 * sex)
    length = rng.uniform(45, 140) if long else rng.uniform(0, 16) + 5 * curl
    hairline = rng.uniform(-95, -70) if bald else rng.uniform(-26, -20) if bangs else normal(-43 - 7 * age * (1 - sex), 4, -58, -34)
    power = rng.uniform(5, 8) if bangs or bald else rng.uniform(2.4, 4.0) if long else rng.uniform(3.0, 7.0)
    volume = rng.uniform(1, 3) if bald else (3 + 9 * float(rng.beta(1.6, 2.2)) + 7 * curl + (2 if long else 0))

    beard = (1 - sex) * (1 - made_up) * float(rng.beta(0.45, 0.9)) if sex < 0.5 else 0.0
    moustache = min(1.0, beard * rng.uniform(0.7, 1.3)) if chance(0.9) else (1 - sex) ** 2 * rng.uniform(0, 0.9)
    smiling = max(mood - 0.35, 0.0) / 0.65
    opened = rng.uniform(2.5, 7.5) * smiling if chance(0.75) else 0.0
    if chance(0.05):
        opened = rng.uniform(2, 7)
    worn = rng.random()
    glasses = "sun" if worn < 0.03 else rng.choice(["round", "square"]) if worn < 0.09 + 0.22 * age else "none"
    hat = rng.choice(["beanie", "brim"]) if chance(0.06) else "none"
    angle = rng.normal(0, 0.75)
    light = np.array((np.sin(angle), rng.uniform(-0.75, -0.15), rng.uniform(0.9, 1.6)))
    light /= np.linalg.norm(light)
    warmth = normal(0, 0.06, -0.14, 0.14)
    backdrop = any_color(rng, rng.uniform(0.2, 0.9))
    other = any_color(rng, rng.uniform(0.2, 0.9)) if chance(0.5) else tuple(c * float(rng.uniform(0.3, 1.6)) for c in backdrop)
    lipstick_color = linear(np.array((rng.uniform(0.55, 0.85), rng.uniform(0.08, 0.35), rng.uniform(0.15, 0.42))))

    return Face(
        yaw=normal(0, 0.17, -0.42, 0.42),
        pitch=normal(0, 0.35, -0.9, 0.9),
        roll=normal(0, 0.025, -0.05, 0.05),
        scale=normal(1.0, 0.02, 0.95, 1.05),
        shift=(normal(0, 0.8, -2, 2), normal(0, 1.0, -2.5, 2.5)),
        light=(float(light[0]), float(light[1]), float(light[2])),
        light_color=(1.0 + warmth, 1.0, 1.0 - warmth),
        ambient=rng.uniform(0.14, 0.42),
        exposure=normal(1.0, 0.12, 0.75, 1.3),
        blur=max(0.0, rng.normal(0.45, 0.3)),
        noise=rng.uniform(0.004, 0.016),
        skin=linear(skin),
        face_width=normal(45.5 - 2.0 * sex, 1.9, 40, 50),
        jaw=normal(0.68 - 0.42 * sex, 0.16, 0, 1),
        chin=normal(69.5 - 3.0 * sex, 2.2, 62, 75),
        ears=rng.uniform(0.6, 1.1),
        wrinkles=float(np.clip(1.25 * (age - 0.3) + rng.normal(0, 0.1), 0, 1)),
        blush=float(np.clip(0.25 + 0.5 * made_up + rng.normal(0, 0.2), 0, 1)),
        eye_size=normal(9.4 + 0.4 * sex, 0.5, 8.2, 10.8),
        eye_open=normal(3.3 + 0.5 * sex - 0.5 * age - 0.5 * smiling, 0.5, 1.6, 4.6),
        eye_tilt=normal(0.15 + 0.2 * sex, 0.35, -0.6, 1.0),
        iris=linear(IRIS[rng.integers(2) if chance(0.25 + 0.75 * dark) else rng.integers(6)] * rng.uniform(0.8, 1.1)),
        gaze=(normal(0, 0.8, -2, 2), normal(0, 0.35, -0.8, 0.8)),
        makeup=made_up,
        brow_thickness=normal(2.3 - 1.0 * sex, 0.35, 0.8, 3.2),
        brow_height=normal(12.0 + 1.5 * sex, 1.1, 9.5, 16),
        brow_arch=normal(1.4 + 1.2 * sex, 0.8, 0, 4.5),
        nose_width=normal(1.03 - 0.10 * sex + 0.14 * dark, 0.08, 0.8, 1.4),
        nose_length=normal(26.0 - 1.2 * sex, 1.4, 22, 29.5),
        mouth_width=normal(14.6 - 0.8 * sex, 0.9, 12, 17) + 2.8 * max(mood, 0.0),
        lips=normal(3.3 + 0.7 * sex + 0.9 * dark - 0.6 * age - 0.5 * smiling, 0.55, 1.8, 6.0),
        smile=mood,
        mouth_open=float(opened),
        lipstick=float(np.clip(made_up * rng.uniform(0.3, 1.3), 0, 0.92)),
        lipstick_color=lipstick_color,
        hair=linear(hair),
        hair_volume=float(volume),
        hair_length=float(length),
        hairline=float(hairline),
        hairline_power=float(power),
        part=float(rng.choice((-14, 0, 14)) + rng.normal(0, 3)),
        part_depth=0.0 if bangs else float(max(0.0, rng.normal(6, 5))),
        wave=float(rng.beta(0.8, 1.2)) if long else 0.2,
        curl=curl,
        beard=beard,
        moustache=moustache,
        glasses=str(glasses),
        frame_color=linear(rng.uniform(0.05, 0.3) * np.array((1.0, rng.uniform(0.6, 1), rng.uniform(0.5, 1)))),
        hat=str(hat),
        hat_color=any_color(rng, 0.6),
        clothes=any_color(rng, rng.uniform(0.2, 1.0)),
        neckline=float(rng.uniform(0, 18) + 26 * sex * rng.random()),
        collar=chance(0.45 * (1 - sex)),
        background=(backdrop, other),
        background_angle=rng.uniform(0, 6.28),
        background_shapes=int(rng.integers(0, 7)),
    )


def draw_face(seed: int, index: int) -> Image.Image:
    """Draws face `index` of the set `seed`; depends on these two alone.

    Args:
        seed: the set, 0 or more.
        index: the face, 0 or more; `img_align_celeba/` names it index + 1.

    Returns:
        RGB image, 178 x 218 pixels.
    """
    rng = np.random.default_rng([seed, index])
    return render(sample_face(rng), rng)
