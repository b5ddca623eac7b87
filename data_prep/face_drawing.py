"""Draw one portrait in the layout of an aligned CelebA photograph, with six known traits: `draw_face(seed, index)`.

A face is painted in layers from back to front. A layer is a shape (lines that Pillow fills, supersampled) times a color
times a shading (sums of Gaussians and a light from one side, in numpy). The traits are independent of each other and of
all else that varies: skin, hairstyle, proportions, clothes, light, background and placement.

Points are complex numbers u + iv in pixels of the 178x218 image: u to the right, v down, from the point midway between
the eyes, which CelebA's alignment puts at (69, 111) and (108, 111). They also have a depth toward the viewer, 0 at the
eyes: a head that turns by angles with the tangents `turn` moves a point by depth * turn, and the eyes stay in place.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Array = np.ndarray
WIDTH, HEIGHT = 178, 218  # the aligned image, pixels
CENTER = 88.5 + 111.0j  # midway between the eyes in that image, pixels
EYE = 19.5  # half the distance between the eyes, pixels
SUPERSAMPLING = 3
POSES = {"left": -1.0, "front": 0.0, "right": 1.0}
HAIR_COLORS = {"black": (26, 24, 28), "blond": (226, 184, 98), "brown": (124, 76, 46), "gray": (180, 183, 190)}
SKINS = np.array([(244, 208, 186), (233, 188, 160), (222, 170, 134), (190, 136, 102), (152, 104, 76), (126, 86, 64)])
IRISES = np.array([(66, 40, 26), (104, 66, 38), (78, 116, 84), (84, 122, 158), (120, 132, 142)]) / 255
BLACK, WHITE = np.zeros(3), np.ones(3)
# Bumps of the face toward the viewer, and hollows that less of the sky reaches: u (both sides where it is not 0), v,
# width and height of a Gaussian, depth, and how high (pixels) or how dark (share).
BUMPS = (
    (17, -15, 13, 6, -4, 2.4), (19.5, 0, 11, 7, 0, -4.4), (19.5, 1, 7, 5, 0, 2.2), (0, 6, 4.5, 15, 8, 4.4),
    (0, 23, 6, 7, 20, 7.0), (8, 25, 3.5, 3.5, 12, 3.2), (26, 20, 12, 10, -8, 3.6), (0, 40, 14, 9, 6, 3.6),
)  # fmt: skip
HOLLOWS = (
    (18.5, -2, 13, 8, 0, 0.42), (10, -3, 4, 6, 2, 0.22), (19.5, 9, 9, 3, -2, 0.12), (9.5, 26, 2, 4, 10, 0.20),
    (0, 32, 8, 3, 12, 0.28), (0, 54, 10, 3, 4, 0.20),
)  # fmt: skip


class Traits(NamedTuple):
    """Known traits of a face: things worn, a beard, a smile, one of HAIR_COLORS, and the side it faces, one of POSES."""

    glasses: bool
    hat: bool
    hair: str
    beard: bool
    smile: bool
    pose: str


def draw_traits(seed: int, index: int) -> Traits:
    """Return the traits of face `index` of the set `seed`: independent, with equally likely colors and poses."""
    rng = np.random.default_rng([seed, index, 1])
    glasses, hat, beard, smile = (rng.random(4) < (0.4, 0.35, 0.4, 0.5)).tolist()
    return Traits(glasses, hat, str(rng.choice(list(HAIR_COLORS))), beard, smile, str(rng.choice(list(POSES))))


class Face:
    """A person, the light, and the picture under way: `pixels`, float32 [3, HEIGHT, WIDTH] in [0, 1]."""

    def __init__(self, traits: Traits, rng: np.random.Generator):
        """Choose what several layers share."""
        yaw = POSES[traits.pose] * rng.uniform(0.23, 0.34) + rng.uniform(-0.05, 0.05)
        self.turn, self.scale = complex(yaw, rng.uniform(-0.12, 0.12)), rng.uniform(0.95, 1.05)
        self.origin = CENTER + complex(*rng.uniform(-1.8, 1.8, 2))
        self.light, self.ambient = rng.uniform(-0.9, 0.9), rng.uniform(0.35, 0.6)  # from the left .. right; soft share
        low, share = divmod(rng.random() * (len(SKINS) - 1), 1)
        skin = SKINS[int(low)] * (1 - share) + SKINS[int(low) + 1] * share
        self.skin = skin / 255 * rng.uniform(0.97, 1.03, 3)
        self.hair = np.array(HAIR_COLORS[traits.hair]) / 255 * rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 3)
        self.width, self.chin, self.jaw = rng.uniform(43, 48), rng.uniform(65, 74), rng.random()  # jaw: 1 is square
        self.curl, self.volume = max(0.0, rng.uniform(-1, 1)), rng.uniform(6, 12)  # pixels of hair outside the skull
        length = rng.choice((rng.uniform(14, 26), rng.uniform(50, 75), rng.uniform(100, 150)))  # short, bob or long
        self.length = float(length)  # v at which the hair ends
        self.noise = rng.standard_normal((HEIGHT, WIDTH), np.float32)
        self.pixels = np.zeros((3, HEIGHT, WIDTH), np.float32)
        self.u = ((np.arange(WIDTH, dtype=np.float32) + 0.5 - self.origin.real) / self.scale)[None, :]
        self.v = ((np.arange(HEIGHT, dtype=np.float32) + 0.5 - self.origin.imag) / self.scale)[:, None]

    def bumps(self, *bumps: tuple[float, ...]) -> Array:
        """Return the sum of Gaussians given like BUMPS over the picture, [HEIGHT, WIDTH]."""
        both = [*bumps, *((-bump[0], *bump[1:]) for bump in bumps if bump[0])]
        u, v, su, sv, depth, amount = np.array(both, np.float32).T
        across = np.exp(-(((self.u.T - u - depth * self.turn.real) / su) ** 2))
        return (amount * np.exp(-(((self.v - v - depth * self.turn.imag) / sv) ** 2))) @ across.T

    def round(self, depth: float, half: float) -> Array:
        """Return the shading [1, WIDTH] of an upright cylinder of this half width with its axis at this depth."""
        x = np.clip((self.u - depth * self.turn.real) / half, -0.98, 0.98)
        lit = np.clip(0.8 * np.sqrt(1.0 - x * x) + 0.6 * self.light * x, 0.0, 1.0)
        return np.sqrt(self.ambient + (1.0 - self.ambient) * lit)

    def paint(
        self, *lines: Array, color: Array = BLACK, shade: Array | float = 1.0, opacity: Array | float = 1.0,
        depth: float | None = None, blur: float = 0.0, pen: float = 0.0,
    ) -> Array:  # fmt: skip
        """Blend color [3] * shade into the inside of closed lines, or with a `pen` of that width into the lines.

        The points have one depth; without it they lie on the front of the head. Shade and opacity may be arrays over the
        picture, shade also [3, HEIGHT, WIDTH]; `blur` is a radius. Return the share of each pixel that was painted.
        """
        points = np.concatenate(lines)
        front = 8.0 - 46.0 * (points.real / 47.0) ** 2 - 42.0 * np.clip(points.imag / -66.0, 0.0, 1.0) ** 3
        depths = np.maximum(front, -40.0) if depth is None else depth
        points = (points + depths * self.turn) * self.scale + self.origin
        margin = blur + pen + 1.0
        left, top = max(int(points.real.min() - margin), 0), max(int(points.imag.min() - margin), 0)
        right = min(int(points.real.max() + margin) + 2, WIDTH)
        bottom = min(int(points.imag.max() + margin) + 2, HEIGHT)
        drawing = Image.new("L", ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING))
        pencil = ImageDraw.Draw(drawing)
        points = (points - complex(left, top)) * SUPERSAMPLING - (0.5 + 0.5j)
        for line in np.split(points, np.cumsum([len(line) for line in lines[:-1]])):
            if pen:
                pencil.line(line.view(float).tolist(), 255, round(pen * SUPERSAMPLING))
            else:
                pencil.polygon(line.view(float).tolist(), 255)
        drawing = drawing.reduce(SUPERSAMPLING)
        if blur:
            drawing = drawing.filter(ImageFilter.BoxBlur(blur))
        mask, window = np.zeros((HEIGHT, WIDTH), np.float32), (slice(top, bottom), slice(left, right))
        share = np.broadcast_to(np.asarray(opacity, np.float32), mask.shape)[window] / 255
        mask[window] = share = np.asarray(drawing) * share
        shade = np.broadcast_to(np.asarray(shade, np.float32), self.pixels.shape)
        for channel in range(3):
            part = self.pixels[channel][window]
            part += share * (float(color[channel]) * shade[channel][window] - part)
        return mask


def mirrored(line: Array) -> tuple[Array, Array]:
    """Return a line at the right of the face and the same at the left."""
    return line, -line.conj()


def there_and_back(line: Array, other: Array) -> Array:
    """Return the closed line along one line and back along the other."""
    return np.append(line, other[::-1])


def oval(center: complex, ru: float, rv: float, power: float = 1.0) -> Array:
    """Return an ellipse as a closed line [40], or with a smaller power something between it and a rectangle."""
    angle = np.linspace(0, 2 * np.pi, 40)
    c, s = np.cos(angle), np.sin(angle)
    return center + ru * np.sign(c) * np.abs(c) ** power + 1j * rv * np.sign(s) * np.abs(s) ** power


def any_color(rng: np.random.Generator, low: float, high: float, vivid: float = 1.0) -> Array:
    """Return a random color whose largest channel is between low and high; `vivid` in [0, 1] bounds its saturation."""
    color, vivid = rng.random(3), vivid * rng.random()
    return rng.uniform(low, high) * (1.0 - vivid + vivid * color / color.max())


# Layers, in the order of painting. Each takes its random numbers before it asks for traits, so that another trait
# changes nothing else.


def draw_background(face: Face, rng: np.random.Generator) -> None:
    """Paint two colors that blend: a wall, or something far out of focus."""
    first, second = any_color(rng, 0.15, 0.95, 0.8), any_color(rng, 0.15, 0.95, 0.8)
    coarse = Image.fromarray(rng.random((rng.integers(2, 7), rng.integers(2, 7)), np.float32))
    blend = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) * rng.uniform(0.3, 1.0)
    face.pixels += np.multiply.outer(np.float32(first), 1 - blend) + np.multiply.outer(np.float32(second), blend)


def draw_back_hair(face: Face, rng: np.random.Generator) -> tuple[Array, Array]:
    """Paint the hair behind the head; return its outline [84] and the brightness of its strands [HEIGHT, WIDTH]."""
    angle, down, wide = np.linspace(np.pi, 2 * np.pi, 60), np.linspace(0, 1, 12), face.width + face.volume
    rough = 1.0 + 0.02 * face.curl * np.sin(angle * 24 + rng.uniform(0, 6))
    top = rough * (wide * np.cos(angle) + 1j * (62.0 + 1.2 * face.volume) * np.sin(angle))
    side = wide + (8.0 * down**2 if face.length > 30 else -5.0 * down) + 1j * (face.length + 6.0) * down
    outline = np.concatenate([-side[::-1].conj(), top, side]) - 6j
    # Strands fan out from the part over the skull and hang straight below it.
    part, wave, phase = rng.uniform(-20, 20), rng.uniform(0, 6), rng.uniform(0, 6)
    height = np.clip((-8.0 - face.v) / 80.0, 0.0, 0.96)
    across = (face.u - part * height + 38.0 * face.turn.real) / np.sqrt(1.0 - height**2)
    across = across + wave * np.sin(face.v * 0.1 + phase)
    locks = sum(np.interp(np.arange(1024), np.linspace(0, 1024, n), 0.12 * rng.standard_normal(n)) for n in (40, 300))
    strands = np.asarray(locks, np.float32)[(across * 2.3 + 512.0).astype(int) & 1023]
    curls = Image.fromarray(rng.standard_normal((40, 34), np.float32)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    strands = 1.0 + (1.0 - 0.7 * face.curl) * strands + 0.16 * face.curl * np.asarray(curls)
    face.paint(outline, color=face.hair, shade=0.62 * strands, blur=0.6)
    return outline, strands


def draw_body(face: Face, rng: np.random.Generator) -> None:
    """Paint the neck with the chin's shadow, and the clothes."""
    neck, clothes = face.width * rng.uniform(0.56, 0.68), any_color(rng, 0.15, 0.95)
    throat = oval(1j * face.chin, neck, 60, 0.5)
    shown = face.paint(throat, color=face.skin, shade=face.round(-30, neck), depth=-30)
    face.paint(oval(1j * (face.chin - 8), neck * 1.2, 26), opacity=0.42 * shown, depth=-10, blur=6)
    u = np.linspace(-130, 130, 53)
    top = face.chin + 17 + rng.uniform(0.2, 0.45) * np.maximum(np.abs(u) - neck, 0)
    collar = u + 1j * (top + rng.uniform(4, 24) * np.exp(-((u / (neck * rng.uniform(0.8, 1.1))) ** 2)))
    shoulders = np.append(collar, (150 + 150j, -150 + 150j))
    face.paint(shoulders, color=clothes, shade=face.round(-30, 120), depth=-30, blur=0.5)
    face.paint(collar + 1j, opacity=0.25, depth=-30, pen=2.5, blur=1)


def draw_head(face: Face, traits: Traits, rng: np.random.Generator) -> None:
    """Paint ears, skin and beard."""
    ears = mirrored(oval(face.width + 1.5 + 8j, 6, 13))
    face.paint(*ears, color=face.skin * (0.86, 0.74, 0.70), shade=face.round(-40, 80))
    angle = np.linspace(0, 2 * np.pi, 73)
    c, s, low = np.cos(angle), np.sin(angle), np.maximum(np.sin(angle), 0.0)
    u = np.sign(c) * np.abs(c) ** (1.0 - 0.25 * face.jaw * low) * (1.0 - (0.24 - 0.12 * face.jaw) * low**2)
    outline = face.width * u + 1j * np.where(s < 0, 66.0, face.chin) * s
    # The face as a field of heights, lit from one side and above. Hollows are darker, and what faces the light shines.
    level = np.clip(face.v / face.chin, 0.0, 1.0)
    x = (face.u + face.turn.real * 34.0 * (1.0 - level**1.6)) / face.width / (1.04 - 0.16 * level**2)
    y = np.maximum(face.v / -68.0, face.v / (face.chin * 1.04))
    z = 44.0 * np.sqrt(np.clip(1.0 - x * x - y**2.4, 0.0, 1.0) + 0.04)
    z = z + face.bumps(*BUMPS, (27, 20, 10, 8, -8, 2.5 * traits.smile), (0, face.chin - 7, 10, 7, 4, 3.0))
    dark = face.bumps(*HOLLOWS, (23, 34, 3, 8, 0, 0.12 * traits.smile))
    dv, du = np.gradient(z)
    to_light = np.array((face.light, -0.45, 1.1), np.float32) / np.float32(np.hypot(face.light, 1.19))
    norm, facing = 1.0 / np.sqrt(1.0 + du * du + dv * dv), to_light[2] - du * to_light[0] - dv * to_light[1]
    lit, shine = np.clip(facing * norm, 0.0, 1.0), np.clip((facing + 0.9) * norm * 0.53, 0.0, 1.0)
    shade = np.sqrt(face.ambient + (1.05 - face.ambient) * lit) * (1.0 - np.minimum(dark, 0.7))
    blush = face.bumps((25, 22, 13, 9, -6, rng.uniform(0.0, 0.14)))
    tinted = np.stack([shade * (1.1 - 0.1 * shade), shade * (1.0 - blush), shade * (1.0 - 0.8 * blush)])
    head = face.paint(outline, color=face.skin, shade=tinted)
    for _ in range(4):
        shine *= shine  # to the power of 16
    face.pixels += 0.09 * head * shine
    if traits.beard:
        edge = np.array((1.0, 0.84 + 0.34j, 0.64 + 0.46j, 0.42 + 0.44j, 0.1 + 0.40j, 0.42j))
        edge = edge.real * face.width + 1j * edge.imag * face.chin
        jaw = there_and_back(outline[s >= 0], np.append(edge, -edge[-2::-1].conj()))
        rough = (0.5 + 0.5 * shade) * (1 + 0.07 * face.noise)
        face.paint(jaw, color=0.36 * face.hair + 0.17 * face.skin, shade=rough, opacity=0.92, blur=3)


def draw_mouth(face: Face, traits: Traits, rng: np.random.Generator) -> None:
    """Paint nostrils and lips, and teeth in a smile."""
    face.paint(*mirrored(oval(4.3 + 29.5j, 2.6, 1.5)), opacity=0.6, depth=15, blur=0.7)
    wide, full, red = rng.uniform(13.5, 16.5), rng.uniform(2.8, 4.8), rng.uniform(0.0, 0.5)
    bend, opening = rng.uniform(-1.0, 1.0), rng.uniform(6.0, 9.0)
    wide, bend, opening = (wide + 5.0, 5.5, opening) if traits.smile else (wide, bend, 0.0)
    t = np.linspace(-1, 1, 25)
    arc, line = 1.0 - t * t, wide * t + 1j * (41.0 + bend * (0.4 - t * t))
    lips = (1 - red) * face.skin * (0.82, 0.55, 0.55) + red * np.array((0.72, 0.16, 0.24))
    upper, lower = full * arc**0.8 * (1.0 - 0.3 * np.exp(-((t / 0.15) ** 2))), opening * arc + 1.25 * full * arc**0.8
    layers = [(-upper, opening * arc, lips, 0.72), ((opening - 1) * arc, lower, lips, 1.1)]
    if traits.smile:
        layers += [(0 * t, opening * arc, 0.25 * WHITE, 0.6), (0 * t, 0.8 * opening * arc, 0.95 * WHITE, 0.95)]
    for above, below, color, light in layers:
        points = there_and_back(line + 1j * above, line + 1j * below)
        face.paint(points, color=color, shade=light * face.round(0, 40), blur=0.4)
    face.paint(line, opacity=0.5, blur=0.5, pen=1.6)


def draw_eyes(face: Face, traits: Traits, rng: np.random.Generator) -> None:
    """Paint eyes and brows."""
    half, opening, tilt = rng.uniform(9.0, 11.0), rng.uniform(3.6, 4.8) - 0.7 * traits.smile, rng.uniform(-0.5, 1.5)
    iris, gaze = IRISES[rng.integers(len(IRISES))], rng.uniform(-1.0, 1.0) + 3.0 * face.turn.real - 0.4j
    thick, arch, high = rng.uniform(1.8, 3.4), rng.uniform(1.0, 5.0), rng.uniform(11.0, 14.5)
    t, shade = np.linspace(-1, 1, 17), face.round(0, 70)  # t: from the nose to the temple
    middle = EYE + half * t - 1j * tilt * t
    upper, lower = middle - 1.2j * opening * (1 - np.abs(t) ** 2.3), middle + 0.8j * opening * (1 - t * t)
    eyes = face.paint(*mirrored(there_and_back(upper, lower)), color=0.4 * face.skin + 0.47, shade=shade)
    for color, radius, place in ((iris * 0.5, 4.5, 0), (iris, 3.8, 0), (BLACK, 1.9, 0), (WHITE, 1.0, 1.2 - 1.2j)):
        disks = (oval(side * EYE + gaze + place, radius, radius) for side in (-1, 1))
        face.paint(*disks, color=color, shade=shade, opacity=eyes, depth=0)
    for line, pen, opacity in ((upper + 0.3j, 2.0, 0.8), (lower + 0.3j, 1.0, 0.3), (upper - 3j, 1.0, 0.25)):
        face.paint(*mirrored(line), opacity=opacity, blur=0.5, pen=pen)
    top = EYE - 1 + 13.0 * t - 1j * (high + arch * (0.5 - (t - 0.1) ** 2))
    under = top + 1j * thick * (1.0 - 0.45 * t) * np.minimum(1.0, 4.0 * (1.02 - np.abs(t)))
    face.paint(*mirrored(there_and_back(top, under)), color=0.62 * face.hair, shade=shade, opacity=0.85, blur=0.8)


def draw_front_hair(face: Face, outline: Array, strands: Array, rng: np.random.Generator) -> None:
    """Paint the hair above the forehead and beside the face, and its shadow."""
    short, hairline, part, t = face.length < 30, rng.uniform(-48, -28), rng.uniform(-0.6, 0.6), np.linspace(1, -1, 49)
    power, bottom = (rng.uniform(3.5, 6.0), face.length - 8) if short else (rng.uniform(6.0, 9.0), face.length)
    line = hairline + (bottom - hairline) * np.abs(t) ** power - rng.uniform(0, 9) * np.exp(-np.abs(t - part) / 0.25)
    inner = face.width * (0.97 if short else 0.94) * t + 1j * (line + np.sin(t * 40.0) * (np.abs(t) < 0.9))
    face.paint(inner + 2j, opacity=0.4, blur=3, pen=7)
    x = (face.u + 40.0 * face.turn.real) / (face.width + face.volume)
    ring = 0.92 + 0.3 * np.exp(-(((face.v + 46.0 - 14.0 * x * x) / 11.0) ** 2))
    shade = face.round(-38, face.width + face.volume + 4.0) * ring * strands
    face.paint(np.append(outline[outline.imag <= bottom], inner), color=face.hair, shade=shade, blur=0.7)


def draw_glasses(face: Face, traits: Traits, rng: np.random.Generator) -> None:
    """Paint glasses: lenses with a tint and a reflection, frames, bridge and temples."""
    power, wide, high, pen = rng.choice((1.0, 0.55)), rng.uniform(13, 15), rng.uniform(10, 12), rng.uniform(1.8, 2.4)
    frame, tint = any_color(rng, 0.05, 0.3), float(rng.choice((0.2, 0.35, 0.7), p=(0.5, 0.4, 0.1)))
    if not traits.glasses:
        return
    rim, t = oval(EYE + 0.5 + 2j, wide, high, power), np.linspace(-1, 1, 7)
    face.paint(*mirrored(rim), opacity=tint)
    glare = np.array((-6 - 6j, -1 - 6j, -6 + 8j, -9 + 8j))
    face.paint(glare - EYE, glare + EYE, color=WHITE, opacity=0.18)
    bridge, temple = 7 * t - 2j * (1 - t * t), np.array((EYE + wide - 1j, face.width - 2j))
    face.paint(*mirrored(rim), bridge, *mirrored(temple), color=frame, pen=pen)


def draw_hat(face: Face, traits: Traits, rng: np.random.Generator) -> None:
    """Paint a knitted cap or a hat with a brim, and its shadow on the forehead."""
    color, band, brim = any_color(rng, 0.25, 0.95), any_color(rng, 0.1, 0.9), rng.random() < 0.5
    low, ribs = rng.uniform(-44, -37), rng.uniform(1.0, 2.0)
    if not traits.hat:
        return
    wide, t = face.width + face.volume + 3.0, np.linspace(1, -1, 20)
    edge, crown = wide * t + 1j * (low + 5.0 * (1 - t * t)), oval(1j * low, wide, 40.0 + 1.2 * face.volume, 0.8)[20:]
    shade = face.round(-38, wide * 1.05) * (1.0 if brim else 1.0 + 0.07 * np.sin(face.u * ribs))
    face.paint(edge + 4j, opacity=0.35, blur=4, pen=10)
    if brim:
        face.paint(oval(1j * (low + 3), wide * 1.45, 9), color=color, shade=0.65 * shade, depth=-20, blur=0.4)
        face.paint(oval(1j * low, wide * 1.45, 9), color=color, shade=shade, depth=-20, blur=0.4)
    face.paint(np.append(crown, edge), color=color, shade=shade, blur=0.4)
    cuff = there_and_back(edge, edge * 1.02 - 13j)
    face.paint(cuff, color=band if brim else color, shade=shade if brim else 1.12 * shade, blur=0.4)


def draw_face(seed: int, index: int, traits: Traits | None = None) -> Image.Image:
    """Draw face `index` of the set `seed`; it depends on these two and on the traits alone.

    Args:
        seed: the set, 0 or more.
        index: the face, 0 or more; `img_align_celeba/` names it index + 1.
        traits: traits of the same person in the same place, in place of `draw_traits(seed, index)`.

    Returns:
        RGB image, 178 x 218 pixels.
    """
    traits, rng = traits or draw_traits(seed, index), np.random.default_rng([seed, index, 2])
    face = Face(traits, rng)
    draw_background(face, rng)
    outline, strands = draw_back_hair(face, rng)
    draw_body(face, rng)
    draw_head(face, traits, rng)
    draw_mouth(face, traits, rng)
    draw_eyes(face, traits, rng)
    draw_front_hair(face, outline, strands, rng)
    draw_glasses(face, traits, rng)
    draw_hat(face, traits, rng)
    warm, exposure, grain = rng.uniform(-0.05, 0.06), rng.uniform(0.9, 1.1), rng.uniform(0.004, 0.014)
    for channel, tone in zip(face.pixels, (1.0 + warm, 1.0, 1.0 - warm)):
        channel *= 255.0 * exposure * tone
        channel += 255.0 * grain * face.noise + 0.5
    channels = np.clip(face.pixels, 0.0, 255.0, out=face.pixels).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(channel) for channel in channels])
