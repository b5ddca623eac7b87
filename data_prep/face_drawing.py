"""Draw one parametric portrait in the layout of an aligned CelebA image: `render(face, rng)`.

A face is a height field (an ellipsoid head with bumps for brow, nose, cheeks, lips and chin) lit by one directional
light, under layers of soft masks (eyes, brows, mouth, hair, glasses, hat). Height and masks are sums of Gaussians and
bands between curves, which numpy draws in about ten milliseconds, and which give the smooth tonal structure of a
photograph: dark eye regions, bright forehead, cheeks and nose bridge, shadow under the nose and chin.

Coordinates: u to the right and v down, in pixels of the 178x218 image, with the origin midway between the eyes
(which CelebA's alignment puts near (69, 111) and (108, 111)). Colors are linear light in [0, 1] (square root of light
is what is stored, close to sRGB), so that shading multiplies. Which faces there are is not decided here but in
`synthetic_faces.sample_face`.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

Array = np.ndarray  # float32 wherever it is as large as the picture
Window = tuple[slice, slice]

WIDTH, HEIGHT = 178, 218  # the aligned image, pixels
EYE_CENTER = (88.5, 111.0)  # midway between the eyes in that image, pixels
PAD = 13  # drawn around the image, so that the final small rotation and shift have something to bring in
U = (np.arange(WIDTH + 2 * PAD) - EYE_CENTER[0] - PAD).astype(np.float32)[None, :]
V = (np.arange(HEIGHT + 2 * PAD) - EYE_CENTER[1] - PAD).astype(np.float32)[:, None]
EYE = 19.5  # half the distance between the eyes, pixels
BALD = -65.0  # a hairline above this leaves the top of the head bare


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face and how it is seen. Lengths in pixels, angles in radians, amounts in [0, 1], colors linear RGB."""

    # pose and placement
    yaw: float  # > 0 turns the face toward +u
    pitch: float  # > 0 lifts the chin
    roll: float
    scale: float
    shift: tuple[float, float]
    # light
    light: tuple[float, float, float]  # direction toward the light: u, v, toward the viewer
    light_color: tuple[float, float, float]
    ambient: float
    exposure: float
    blur: float  # radius, pixels
    noise: float  # standard deviation of the sensor's noise, in stored (square root) units
    # head
    skin: tuple[float, float, float]
    face_width: float  # half the width at the eyes
    jaw: float  # 0 pointed, 1 square
    chin: float  # v of the chin
    ears: float
    wrinkles: float
    blush: float
    # eyes
    eye_size: float  # half the width
    eye_open: float  # half the opening
    eye_tilt: float
    iris: tuple[float, float, float]
    gaze: tuple[float, float]
    makeup: float
    brow_thickness: float
    brow_height: float
    brow_arch: float
    # nose and mouth
    nose_width: float
    nose_length: float
    mouth_width: float
    lips: float  # fullness, pixels
    smile: float  # -0.3 sad .. 1 broad
    mouth_open: float  # pixels
    lipstick: float
    lipstick_color: tuple[float, float, float]
    # hair
    hair: tuple[float, float, float]
    hair_volume: float  # pixels outside the skull
    hair_length: float  # v where the hair ends: about 10 short, 60 bob, 140 long
    hairline: float  # v of the hairline at its top; above BALD there is hair at the sides only
    hairline_power: float  # 2 round, 8 straight bangs
    part: float  # u of the parting
    part_depth: float  # how far the parting opens the forehead, pixels
    wave: float
    curl: float
    beard: float
    moustache: float
    # things worn
    glasses: str  # "none", "round", "square" or "sun"
    frame_color: tuple[float, float, float]
    hat: str  # "none", "beanie" or "brim"
    hat_color: tuple[float, float, float]
    clothes: tuple[float, float, float]
    neckline: float  # depth, pixels
    collar: bool
    # background
    background: tuple[tuple[float, float, float], tuple[float, float, float]]
    background_angle: float
    background_shapes: int


def window(u0: float, u1: float, v0: float, v1: float) -> Window:
    """Returns the (rows, columns) slices of the canvas that hold u0 <= u <= u1 and v0 <= v <= v1."""
    rows = slice(max(0, int(v0 - V[0, 0])), max(0, int(v1 - V[0, 0]) + 2))
    columns = slice(max(0, int(u0 - U[0, 0])), max(0, int(u1 - U[0, 0]) + 2))
    return rows, columns


WHOLE: Window = (slice(None), slice(None))
HEAD = window(-64, 64, -78, 80)


def at(win: Window) -> tuple[Array, Array]:
    """Returns the window's coordinates u [1, w] and v [h, 1]."""
    return U[:, win[1]], V[win[0]]


def bump(win: Window, u0: float, v0: float, su: float, sv: float) -> Array:
    """Returns exp(-((u - u0) / su)^2 - ((v - v0) / sv)^2) on the window, [h, w]."""
    u, v = at(win)
    return np.exp(-(((v - v0) / sv) ** 2)) * np.exp(-(((u - u0) / su) ** 2))


def step(distance: Array, softness: float = 1.0) -> Array:
    """Returns a soft 0 -> 1 edge where `distance` (pixels) crosses 0, `softness` pixels wide on either side."""
    t = distance * (0.5 / softness) + 0.5
    np.minimum(np.maximum(t, 0.0, out=t), 1.0, out=t)
    return t * t * (3.0 - 2.0 * t)


def band(v: Array, top: Array, bottom: Array, softness: float = 0.8) -> Array:
    """Returns the soft mask of top(u) < v < bottom(u)."""
    return step(v - top, softness) * step(bottom - v, softness)


def disc(win: Window, u0: float, v0: float, ru: float, rv: float, softness: float = 0.8, power: float = 2.0) -> Array:
    """Returns the soft mask of a (super)ellipse with radii ru and rv."""
    u, v = at(win)
    r = np.abs((u - u0) / ru) ** power + np.abs((v - v0) / rv) ** power
    # Toward the outline both forms are the distance; the second spares a power of every pixel.
    inside = 1.0 - np.sqrt(r) if power == 2.0 else (1.0 - r) / power
    return step(inside * min(ru, rv), softness)


def smooth_noise(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Returns a smooth random field over the canvas, standard deviation about 0.7, from rows x columns values."""
    coarse = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    return np.asarray(coarse.resize((U.size, V.size), Image.Resampling.BICUBIC))


def paint(canvas: Array, win: Window, mask: Array, color, shade: Array | float = 1.0) -> None:
    """Blends color * shade into the canvas [3, H, W] where the mask [h, w] is, in place."""
    for channel in range(3):
        part = canvas[channel][win]
        part += mask * (float(color[channel]) * shade - part)


def darken(canvas: Array, win: Window, amount: Array, warm: float = 0.25) -> None:
    """Multiplies the canvas by 1 - amount, less so in red by `warm` (light bleeds red through skin), in place."""
    for channel, keep in enumerate((1.0 - warm, 1.0, 1.0)):
        canvas[channel][win] *= 1.0 - keep * amount


# --------------------------------------------------------------------------------------------------------------------
# Layers, in the order of painting


def draw_background(canvas: Array, face: Face, rng: np.random.Generator) -> None:
    """Paints a gradient with out-of-focus shapes."""
    du, dv = float(np.cos(face.background_angle)), float(np.sin(face.background_angle))
    t = step(U * du + V * dv, 130.0)
    for channel in range(3):
        first, second = face.background[0][channel], face.background[1][channel]
        canvas[channel] = first + t * (second - first)
    for _ in range(face.background_shapes):
        u0, v0 = rng.uniform(-100, 100), rng.uniform(-120, 100)
        size = rng.uniform(10, 45)
        color = np.clip(
            np.array(face.background[rng.integers(2)]) * rng.uniform(0.3, 2.0) + rng.uniform(0, 0.1, 3), 0, 1
        )
        win = window(u0 - 2 * size, u0 + 2 * size, v0 - 4 * size, v0 + 4 * size)
        if rng.random() < 0.5:  # a lamp or a leaf
            mask = disc(win, u0, v0, size, size * rng.uniform(0.7, 1.4), softness=size * rng.uniform(0.2, 0.8))
        else:  # a post or the edge of a window
            mask = disc(win, u0, v0, size * 0.6, size * 3.0, softness=size * 0.3, power=6.0)
        paint(canvas, win, mask * rng.uniform(0.3, 0.9), color)


def draw_body(canvas: Array, face: Face, rng: np.random.Generator) -> None:
    """Paints the neck, the shoulders and the clothes."""
    lu, _, _ = face.light
    win = window(-200, 200, 30, 200)
    u, v = at(win)
    center = -face.yaw * 12.0
    neck = face.face_width * (0.47 + 0.17 * face.jaw)
    # The outline: the neck widens into sloping shoulders.
    out = np.abs(u - center)
    shoulder = face.chin + 19.0 + 0.27 * np.maximum(out - neck, 0.0) - 9.0 * np.exp(-(((out - neck) / 9.0) ** 2))
    mask = np.maximum(step(neck + 0.12 * np.maximum(v - 60.0, 0) - out, 1.2), step(v - shoulder, 1.5))
    round_neck = np.clip((u - center) / (neck * 1.25), -1, 1)
    shade = face.ambient + 0.8 * np.clip(np.sqrt(1.0 - round_neck**2) * 0.75 + lu * round_neck * 0.6, 0, 1)
    shade = shade * (1.0 - 0.62 * step(face.chin + 15.0 - v - 0.15 * out, 14.0))  # the chin's shadow
    collarbone = 0.14 * bump(win, center - 20, face.chin + 29, 20, 3) + 0.14 * bump(
        win, center + 20, face.chin + 29, 20, 3
    )
    paint(canvas, win, mask, face.skin, shade * (0.92 - collarbone))
    top = shoulder - 2.0 + 0.0 * v
    top = np.maximum(top, face.chin + 14.0 + face.neckline * np.exp(-((out / (neck * 0.95)) ** 2)))
    cloth = step(v - top, 1.2) * mask
    folds = smooth_noise(rng, 6, 14)[win]
    side = np.clip((u - center) / 110.0, -1, 1)
    cloth_shade = (face.ambient + 0.62 + 0.45 * lu * side - 0.2 * side**2) * (1.0 + 0.16 * folds)
    paint(canvas, win, cloth, face.clothes, np.clip(cloth_shade, 0.1, 1.4))
    darken(canvas, win, 0.35 * band(v, top - 3.0, top, 1.5) * mask)
    if face.collar:  # two flaps along a V
        flap = 0.8 * (v - face.chin - 36.0 + 26.0 * out / neck)
        reach = step(neck * 1.15 - out, 1.0)
        paint(canvas, win, band(v, v - flap, v - flap + 10.0, 1.0) * reach, face.clothes, 1.3 * cloth_shade)
        darken(canvas, win, 0.5 * np.exp(-(((flap - 10.5) / 1.2) ** 2)) * reach)


def head_profile(face: Face, u: Array, v: Array) -> tuple[Array, Array]:
    """Returns the head's squared radius r2 (1 on the outline) and its distance inside the outline in pixels."""
    center = -face.yaw * 19.0
    below = np.clip(v / face.chin, 0.0, 1.4)
    # A pointed face narrows early and evenly; a square one keeps its width and turns in late.
    taper = 1.0 - (0.30 - 0.17 * face.jaw) * below**1.5
    x = (u - center - face.yaw * 18.0 * below) / (face.face_width * taper)
    y = np.where(v < 0, (v / 69.0) ** 2, np.abs(v / face.chin) ** (2.25 + 0.45 * face.jaw))
    r2 = x * x * (0.9 + 0.1 * x * x) + y
    return r2, (1.0 - np.sqrt(r2)) * 46.0


def head_height(face: Face, win: Window, r2: Array) -> Array:
    """Returns the height field of the face toward the viewer, in pixels."""
    y, p, n = face.yaw, -6.0 * face.pitch, face.nose_length
    z = 47.0 * np.sqrt(np.clip(1.0 - r2, 0.0, 1.0) + 0.03)
    mouth_v = 41.0 + p * 0.5
    bumps = [  # u, v, su, sv, height
        (-18 + 5 * y, -13 + p, 13, 6, 2.2),
        (18 + 5 * y, -13 + p, 13, 6, 2.2),
        (-EYE, 1, 11, 7.5, -4.6),
        (EYE, 1, 11, 7.5, -4.6),
        (-EYE, 2, 7.5, 5, 1.8),  # the eyeballs
        (EYE, 2, 7.5, 5, 1.8),
        (7 * y, 5 + p, 5.0, 14, 3.9),  # the nose
        (19 * y, n + p - 3, 5.6 * face.nose_width, 7.0, 6.6),
        (-7.5 * face.nose_width + 13 * y, n + p, 3.4, 3.4, 3.0),
        (7.5 * face.nose_width + 13 * y, n + p, 3.4, 3.4, 3.0),
        (-25 + 2 * y, 21 - 3 * face.smile, 12, 10, 3.6 + 2.4 * face.smile),
        (25 + 2 * y, 21 - 3 * face.smile, 12, 10, 3.6 + 2.4 * face.smile),
        (5 * y, mouth_v, 15, 10, 3.5),
        (5 * y, mouth_v + 9 + face.mouth_open, 10, 3.0, -2.4),
        (4 * y, face.chin - 7, 10, 6.5, 3.4),
    ]
    for u0, v0, su, sv, height in bumps:
        z += height * bump(win, u0, v0, su, sv)
    return z


def draw_head(canvas: Array, face: Face, rng: np.random.Generator) -> tuple[Array, Array]:
    """Paints ears and shaded skin; returns the head's mask and its shading, both on HEAD."""
    u, v = at(HEAD)
    lu, lv, lw = face.light
    r2, inside = head_profile(face, u, v)
    for side in (-1, 1):
        size = face.ears * (1.0 - 0.5 * side * face.yaw)
        win = window(side * 45 - 26, side * 45 + 26, -22, 42)
        u0 = side * (face.face_width + 1.0) - face.yaw * 20.0
        light = 0.55 + 0.35 * side * lu + face.ambient * 0.5
        paint(canvas, win, disc(win, u0, 8, 7.0 * size, 14.0), np.multiply(face.skin, (1.0, 0.86, 0.82)), light)
        darken(canvas, win, 0.45 * disc(win, u0 + side, 8, 3.6 * size, 9.0, softness=3.0))
    mask = step(inside, 1.1)
    z = head_height(face, HEAD, r2)
    gv, gu = np.gradient(z)
    norm = 1.0 / np.sqrt(1.0 + gu * gu + gv * gv)
    diffuse = np.clip((lw - gu * lu - gv * lv) * norm, 0.0, 1.2)
    shade = face.ambient + (1.0 - 0.45 * face.ambient) * diffuse
    length = float(np.sqrt(lu * lu + lv * lv + (lw + 1.0) ** 2))  # of the vector halfway between light and viewer
    shine = np.clip((lw + 1.0 - gu * lu - gv * lv) * (norm / length), 0.0, 1.0)
    for _ in range(4):
        shine = shine * shine  # to the 16th power
    mottle = 1.0 + 0.035 * smooth_noise(rng, 26, 22)[HEAD]
    red = face.blush * (
        bump(HEAD, -24, 22, 13, 10) + bump(HEAD, 24, 22, 13, 10) + 0.5 * bump(HEAD, 14 * face.yaw, 24, 7, 6)
    )
    tone = (mottle, mottle * (1.0 - 0.30 * red), mottle * (1.0 - 0.26 * red))
    # Shadows on skin are redder than its lights.
    for channel, bend in enumerate((0.14, -0.06, -0.14)):
        skin = face.skin[channel] * face.light_color[channel] * tone[channel] * shade * (1.0 + bend * (1.0 - shade))
        part = canvas[channel][HEAD]
        part += mask * (skin + 0.075 * shine - part)
    return mask, shade


def draw_folds(canvas: Array, face: Face) -> None:
    """Darkens what folds and overhangs hide from the sky: sockets, nose, mouth corners, wrinkles."""
    u, v = at(HEAD)
    p, y, n = -6.0 * face.pitch, face.yaw, face.nose_length
    lu = face.light[0]
    dark = np.zeros((v.size, u.size), np.float32)
    for side in (-1, 1):
        dark += 0.34 * bump(HEAD, side * (EYE - 1.0), -1.5, 12.5, 7.0)
        dark += 0.24 * bump(HEAD, side * 10.5, -3.0, 4.5, 7.0)  # between the eye and the nose bridge
        dark += (0.10 + 0.25 * face.wrinkles) * bump(HEAD, side * EYE, 9.5, 9.0, 2.4)
        # The fold from the nose's wing to the mouth's corner.
        t = np.clip((v - n - p) / 17.0, 0.0, 1.0)
        fold = side * (11.0 + (8.0 + 2.0 * face.smile) * t) + 6 * y
        strength = 0.06 + 0.22 * max(face.smile, 0.0) + 0.26 * face.wrinkles
        dark += strength * np.exp(-(((u - fold) / 2.6) ** 2)) * step(v - n - p + 2, 3.0) * step(n + p + 18.0 - v, 4.0)
        dark += 0.28 * bump(HEAD, side * 9.2 * face.nose_width + 10 * y, n + p, 1.9, 3.6)
        dark += 0.62 * bump(HEAD, side * 4.0 * face.nose_width + 15 * y, n + p + 4.0, 2.5, 1.5)  # nostrils
        dark += 0.20 * bump(HEAD, side * (face.mouth_width + 2.0) + 5 * y, 41.0 - 2.0 * face.smile, 3.0, 3.0)
    dark += 0.26 * bump(HEAD, 10 * y - 3.0 * lu, n + p + 6.5, 9.0 * face.nose_width, 3.2)
    dark += 0.17 * bump(HEAD, 5 * y, 52.0 + face.mouth_open + p, 10.0, 2.8)
    if face.wrinkles > 0.25:
        for line in (-46.0, -38.0, -30.0):
            depth = 0.22 * face.wrinkles * bump(HEAD, 6 * y, 0, 26.0, 300.0)
            dark += depth * np.exp(-(((v - line - 0.004 * u * u) / 1.3) ** 2))
        for side in (-1, 1):
            dark += 0.16 * face.wrinkles * bump(HEAD, side * 34.0, 3.0, 5.0, 5.0)
    darken(canvas, HEAD, np.clip(dark, 0.0, 0.85))


def mean_shade(shade: Array, win: Window) -> float:
    """Returns the mean of the shading, which lies on HEAD, over a window inside HEAD."""
    rows, columns = (slice(w.start - h.start, w.stop - h.start) for w, h in zip(win, HEAD))
    return float(shade[rows, columns].mean())


def draw_eyes(canvas: Array, face: Face, shade: Array) -> None:
    """Paints eyeballs, irises, lids and lashes."""
    lu = face.light[0]
    for side in (-1, 1):
        half = face.eye_size * (1.0 + 0.35 * side * face.yaw)
        u0, v0 = side * EYE, 0.0
        win = window(u0 - 18, u0 + 18, -16, 15)
        u, v = at(win)
        t = (u - u0) / half
        inner = np.clip(1.0 - np.abs(t + 0.12 * side) ** 2.3, -0.6, 1.0)
        tilt = v0 - face.eye_tilt * 2.2 * side * t
        upper = tilt - face.eye_open * 1.25 * inner
        lower = tilt + face.eye_open * (0.80 - 0.25 * max(face.smile, 0)) * np.clip(1.0 - t * t, -0.6, 1.0)
        ends = step(1.12 - np.abs(t), 0.12)
        ball = band(v, upper, lower, 0.7) * ends
        light = 0.35 + 0.65 * min(1.15 * mean_shade(shade, window(u0 - 6, u0 + 6, -4, 4)), 1.0)
        globe = light * (1.0 - 0.28 * np.abs(t) ** 2 - 0.45 * np.exp(-(((v - upper) / 1.8) ** 2)))
        paint(canvas, win, ball, (0.66, 0.62, 0.60), globe)
        iu, iv = u0 + face.gaze[0] + 1.5 * face.yaw, v0 - 0.4 + face.gaze[1]
        radius = np.sqrt((u - iu) ** 2 + (v - iv) ** 2)
        paint(canvas, win, ball * step(4.1 - radius, 0.8), face.iris, light * (0.55 + 0.6 * step(v - iv, 3.5)))
        darken(
            canvas, win, ball * (0.6 * np.exp(-(((radius - 4.0) / 0.8) ** 2)) + 0.92 * step(1.75 - radius, 0.7)), 0.0
        )
        glint = np.exp(-(((u - iu - 1.3 * (1.0 if lu > 0 else -1.0)) / 0.85) ** 2) - ((v - iv + 1.3) / 0.85) ** 2)
        paint(canvas, win, ball * glint * 0.85, (0.95, 0.95, 1.0))
        thick = 0.75 + 0.9 * face.makeup
        wing = upper - 1.1 * face.makeup * np.clip(side * t, 0, 1) ** 3
        lash = band(v, wing - thick, upper + 0.5, 0.7) * step(1.10 + 0.12 * face.makeup - np.abs(t), 0.12)
        darken(canvas, win, 0.88 * lash, 0.06)
        darken(canvas, win, (0.30 + 0.35 * face.makeup) * band(v, lower - 0.2, lower + 0.6, 0.7) * ends, 0.1)
        crease = np.exp(-(((v - upper + 3.4 + 0.5 * face.eye_open - 1.5) / 1.0) ** 2)) * ends
        darken(canvas, win, 0.38 * crease, 0.2)
        if face.makeup > 0.1:  # eye shadow
            lid = band(v, upper - 6.0, upper, 2.0) * ends
            darken(canvas, win, 0.40 * face.makeup * lid, -0.1)


def draw_brows(canvas: Array, face: Face, rng: np.random.Generator) -> None:
    """Paints the eyebrows in the hair's color."""
    color = np.multiply(face.hair, 0.62) * (1.0, 0.95, 0.9)
    p = -6.0 * face.pitch
    for side in (-1, 1):
        u0 = side * 19.5 + 4 * face.yaw
        win = window(u0 - 20, u0 + 20, -30, 2)
        u, v = at(win)
        t = side * (u - u0) / 13.0  # -1 at the nose, 1 at the temple
        hairs = rng.uniform(0.68, 0.92) + 0.06 * np.tanh(rng.standard_normal((v.size, u.size), dtype=np.float32))
        line = -face.brow_height + p - face.brow_arch * (1.0 - (t - 0.25) ** 2) + 1.2 * t
        half = face.brow_thickness * np.clip(1.0 - 0.55 * np.clip(t, 0, 2), 0.2, 1.0)
        mask = band(v, line - half, line + half, 1.1) * step(1.0 - np.abs(t), 0.16)
        paint(canvas, win, mask * hairs, color)


def draw_mouth(canvas: Array, face: Face, shade: Array) -> None:
    """Paints lips, and teeth when the mouth is open."""
    v0 = 41.0 - 3.0 * face.pitch
    u0 = 5.0 * face.yaw
    win = window(u0 - 28, u0 + 28, 24, 66)
    u, v = at(win)
    t = (u - u0) / face.mouth_width
    arc = np.clip(1.0 - t * t, -0.5, 1.0)
    ends = step(1.04 - np.abs(t), 0.08)
    line = v0 + face.smile * 4.6 * (0.45 - t * t)
    bottom = line + face.mouth_open * arc
    bow = 1.0 - 0.24 * np.exp(-((t / 0.13) ** 2)) + 0.12 * np.exp(-(((np.abs(t) - 0.25) / 0.16) ** 2))
    top = line - face.lips * 0.82 * np.sign(arc) * np.abs(arc) ** 0.85 * bow
    under = bottom + face.lips * 1.10 * np.sign(arc) * np.abs(arc) ** 0.75
    natural = np.multiply(face.skin, (0.80, 0.52, 0.54))
    color = natural + face.lipstick * (np.array(face.lipstick_color) - natural)
    light = 0.25 + 0.75 * mean_shade(shade, window(-12, 12, 36, 48))
    upper_lip, lower_lip = band(v, top, line, 0.9) * ends, band(v, bottom, under, 0.9) * ends
    paint(canvas, win, upper_lip * 0.9, color, light * 0.74)
    middle = (bottom + under) * 0.5
    paint(canvas, win, lower_lip * 0.9, color, light * (0.92 + 0.22 * np.exp(-(((v - middle + 0.5) / 1.4) ** 2))))
    gloss = (0.05 + 0.22 * face.lipstick) * np.exp(-((t / 0.3) ** 2)) * np.exp(-(((v - middle) / 1.0) ** 2))
    paint(canvas, win, gloss * lower_lip, (0.9, 0.85, 0.85), light)
    if face.mouth_open > 1.0:
        inside = band(v, line, bottom, 0.7) * ends
        paint(canvas, win, inside, (0.10, 0.025, 0.025), light)
        teeth = inside * band(v, line - 1.0, line + 0.3 + face.mouth_open * 0.72 * np.clip(arc, 0, 1), 0.8)
        gaps = 1.0 - 0.07 * np.cos(u * 2.1) ** 8
        paint(canvas, win, teeth * 0.95, (0.74, 0.69, 0.62), light * gaps * (1.0 - 0.55 * t * t))
    darken(canvas, win, 0.62 * np.exp(-(((v - line) / 0.9) ** 2)) * ends, 0.1)


def strands(face: Face, rng: np.random.Generator) -> Array:
    """Returns the brightness of the hair over the canvas [H, W], mean about 1: locks that run along its flow."""
    # Meridians of the skull seen from the front: they start at the part and hang straight below the ears.
    width = 58.0 * np.sqrt(np.clip(1.0 - ((V + 4.0) / 84.0) ** 2, 0.06, 1.0))
    width = np.where(V > -4.0, 58.0, width)
    bend = face.wave * 5.0 * np.sin(V * 0.11 + rng.uniform(0, 6.3)) * step(V + 30.0, 40.0)
    s = (U - face.part * step(-V - 20.0, 40.0) + bend) / width
    locks = np.interp(np.arange(2048) / 8.0, np.arange(257), 0.15 * rng.standard_normal(257))
    locks += np.interp(np.arange(2048) / 32.0, np.arange(65), 0.20 * rng.standard_normal(65))
    position = (s * 256.0 + (1024.0 + 3.0 * np.sin(V * 0.07))).astype(np.int32)
    texture = (1.0 - face.curl) * locks.astype(np.float32)[position & 2047]
    if face.curl > 0.05:
        texture = texture + face.curl * 0.42 * smooth_noise(rng, 40, 34)
    return np.clip(1.0 + texture, 0.25, 2.0).astype(np.float32)


def hair_outline(face: Face, win: Window, texture: Array) -> tuple[Array, Array, Array]:
    """Returns the mask inside the hair's outer edge, and the position in it: x across, y above the eyes (else 0)."""
    u, v = at(win)
    rough = (texture[win] - 1.0) * (2.5 + 3.5 * face.curl)
    if face.hair_length > 30:  # falls straight or widens
        width = face.face_width + face.hair_volume + (4.0 + 6.0 * face.wave) * step(v - 20.0, 40.0)
    else:  # tapers to the sideburns
        width = face.face_width - 1.0 + (face.hair_volume + 1.0) * step(face.hair_length - 12.0 - v, 26.0)
    x = (u + 20.0 * face.yaw) / width
    y = np.maximum(-v - 6.0, 0.0) / (64.0 + 1.15 * face.hair_volume)
    radius = np.sqrt(x * x * (0.85 + 0.15 * x * x) + y * y * (0.85 + 0.15 * y * y))
    return step((1.0 - radius) * 50.0 + rough, 1.6), x, y


def draw_back_hair(canvas: Array, face: Face, texture: Array) -> None:
    """Paints the hair behind the head and the neck."""
    if face.hairline < BALD:
        return
    win = window(-95, 95, -60, 150)
    outer, x, _ = hair_outline(face, win, texture)
    below = step(face.hair_length - V[win[0]] + 14.0 * (texture[win] - 1.0) - 10.0 * x * x, 8.0)
    paint(canvas, win, outer * below, face.hair, 0.48 * texture[win] * (1.0 + 0.3 * face.light[0] * x))


def draw_hair(canvas: Array, face: Face, texture: Array) -> None:
    """Paints the hair in front: a cap outside the skull and above the hairline, with curtains when it is long."""
    lu, lv, _ = face.light
    win = window(-95, 95, -125, 130)
    u, v = at(win)
    tex = texture[win]
    rough = (tex - 1.0) * (5.0 + 7.0 * face.curl)
    outer, x, y = hair_outline(face, win, texture)
    # Inside: the opening for the face.
    opening = face.face_width * (0.88 if face.hairline < BALD else 0.94 if face.hair_length > 30 else 0.97)
    t = (u + 9.0 * face.yaw - 0.25 * face.part) / opening
    fall = 12.0 - face.hairline if face.hair_length < 30 else 110.0 - face.hairline
    line = face.hairline - 5.0 * face.pitch + fall * np.abs(t) ** face.hairline_power
    line = line - face.part_depth * np.exp(-np.sqrt(4.0 + (u - face.part) ** 2) / 13.0)
    edge = line - v + 0.7 * rough
    bottom = step(face.hair_length - v + 1.5 * rough - 10.0 * x * x, 6.0 if face.hair_length < 30 else 10.0)
    mask = outer * step(edge, 2.2) * bottom
    # The shadow it casts on the skin.
    darken(canvas, win, 0.5 * outer * np.clip(1.0 + edge / 9.0, 0, 1) ** 2 * step(-edge, 2.0) * bottom)
    height = np.sqrt(np.clip(1.0 - x * x - 0.8 * y * y, 0.0, 1.0))
    lit = 0.42 + face.ambient * 0.5 + 0.55 * np.clip(lu * x - lv * y + 0.6 * height, -0.4, 1.0)
    ring = np.exp(-(((v + 50.0 - 12.0 * x * x + 8.0 * (tex - 1.0)) / 10.0) ** 2)) * (1.0 - 0.8 * face.curl)
    lit = lit * (1.0 + 0.45 * ring) * tex
    hair = np.add(face.hair, 0.004)
    paint(canvas, win, mask, hair, np.clip(lit, 0.06, 2.2))
    paint(canvas, win, mask * ring * 0.05 * np.clip(tex - 0.6, 0, 1), (0.7, 0.7, 0.75))


def draw_beard(canvas: Array, face: Face, head: Array, rng: np.random.Generator) -> None:
    """Paints beard and moustache, from a shadow of stubble to full."""
    if max(face.beard, face.moustache) < 0.03:
        return
    u, v = at(HEAD)
    y = face.yaw
    hairs = np.tanh(rng.standard_normal(head.shape, dtype=np.float32))
    out = np.abs(u - 4 * y)
    upper = 47.0 - 0.028 * np.clip(out - 12, 0, None) ** 2 - 0.25 * np.clip(out - 12, 0, None)
    cheeks = step(v - upper + 0.8 * hairs, 4.5) * head
    mouth = disc(HEAD, 5 * y, 42.0, face.mouth_width + 2.0, 6.5 + face.mouth_open, softness=2.0)
    lip = disc(HEAD, 6 * y, 35.0 - 2 * face.pitch, face.mouth_width + 2.0, 4.0, softness=2.0)
    lip = lip * step(v - face.nose_length - 4.0, 1.5)
    mask = np.maximum(face.beard * cheeks * (1.0 - mouth), face.moustache * lip)
    color = np.multiply(face.hair, 0.7) + np.multiply(face.skin, 0.05)
    paint(canvas, HEAD, mask * (0.80 + 0.12 * hairs), color, 0.9 + 0.3 * hairs)


def draw_glasses(canvas: Array, face: Face) -> None:
    """Paints glasses: frames, bridge, temples, a reflection; dark lenses for sunglasses."""
    if face.glasses == "none":
        return
    power = 2.0 if face.glasses == "round" else 3.2
    ru, rv, thick = (14.5, 11.5, 1.3) if face.glasses == "sun" else (13.5, 10.0 if power > 2 else 11.5, 0.9)
    shift = 3.0 * face.yaw
    for side in (-1, 1):
        u0, v0 = side * (EYE + 0.5) + shift, 2.0
        win = window(u0 - 20, u0 + 20, -16, 20)
        u, v = at(win)
        r = (np.abs((u - u0) / ru) ** power + np.abs((v - v0) / rv) ** power) ** (1.0 / power)
        distance = (1.0 - r) * rv
        if face.glasses == "sun":
            paint(
                canvas, win, step(distance, 1.0) * 0.93, np.add(face.frame_color, 0.01), 0.5 + 0.9 * step(v - v0, 10.0)
            )
        darken(canvas, win, 0.16 * step(2.5 - np.abs(distance + 2.0), 2.0))  # the frame's shadow
        paint(canvas, win, step(thick - np.abs(distance), 0.8), face.frame_color)
        glare = np.exp(-(((u - u0 + 0.6 * (v - v0) + 4.0) / 2.5) ** 2)) * step(distance - 1.0, 1.0)
        paint(canvas, win, glare * (0.30 if face.glasses == "sun" else 0.14), (0.9, 0.95, 1.0))
        temple = window(side * 42 - 12, side * 42 + 12, -6, 4)
        tu, tv = at(temple)
        reach = step(side * (tu - u0) - ru + 1.0, 1.0) * step(face.face_width + 1.0 - side * (tu + 16 * face.yaw), 1.0)
        paint(canvas, temple, reach * band(tv, -3.0 + 0 * tu, -0.8 + 0 * tu, 0.8), face.frame_color, 0.8)
    win = window(-9 + shift, 9 + shift, -6, 4)
    u, v = at(win)
    gap = EYE + 0.5 - ru
    bridge = -0.5 + 0.08 * (u - shift) ** 2
    reach = step(gap + 0.5 - np.abs(u - shift), 0.8)
    paint(canvas, win, band(v, bridge - thick, bridge + thick, 0.8) * reach, face.frame_color)


def draw_hat(canvas: Array, face: Face, rng: np.random.Generator) -> None:
    """Paints a knitted cap or a hat with a brim, and its shadow on the forehead."""
    if face.hat == "none":
        return
    lu = face.light[0]
    win = window(-110, 110, -130, 0)
    u, v = at(win)
    center = -face.yaw * 14.0
    ru = face.face_width + max(face.hair_volume * 0.6, 4.0)
    x = (u - center) / ru
    lower = -34.0 - 5.0 * face.pitch + 4.0 * x * x
    crown = step((1.0 - np.sqrt(np.abs(x) ** 2.6 + np.clip((-v - 20.0) / 68.0, 0, 2) ** 2.6)) * 45.0, 1.4)
    crown = crown * step(lower - v, 1.0)
    darken(
        canvas, win, 0.45 * step(1.15 - np.abs(x), 0.1) * step(v - lower, 1.0) * np.clip(1.0 - (v - lower) / 18.0, 0, 1)
    )
    lit = face.ambient + 0.40 + 0.45 * np.clip(np.sqrt(np.clip(1.0 - x * x, 0, 1)) + 0.8 * lu * x, 0, 1.4)
    grain = 1.0 + 0.08 * smooth_noise(rng, 10, 10)[win]
    if face.hat == "beanie":
        grain = grain * (1.0 + 0.10 * np.cos(np.arcsin(np.clip(x, -1, 1)) * 38.0))
        fold = band(v, lower - 17.0, lower, 1.0)
        grain = grain * (1.0 + 0.12 * fold - 0.35 * np.exp(-(((v - lower + 17.0) / 1.5) ** 2)))
    else:
        grain = grain * (1.0 - 0.45 * band(v, lower - 11.0, lower - 2.0, 1.0))
    paint(canvas, win, crown, face.hat_color, lit * grain)
    if face.hat == "brim":
        brim = disc(win, center, -36.0 - 5.0 * face.pitch, ru * 1.55, 9.0, softness=1.2)
        paint(
            canvas, win, brim, face.hat_color, (0.55 + face.ambient * 0.4) * (0.8 + 0.4 * step(-v - 36.0, 6.0)) * grain
        )


def render(face: Face, rng: np.random.Generator) -> Image.Image:
    """Draws a face.

    Args:
        face: what to draw.
        rng: texture (strands, mottle, folds, noise). The same face and generator state give the same picture.

    Returns:
        RGB image, 178 x 218 pixels.
    """
    canvas = np.empty((3, V.size, U.size), np.float32)
    texture = strands(face, rng)
    draw_background(canvas, face, rng)
    draw_back_hair(canvas, face, texture)
    draw_body(canvas, face, rng)
    head, shade = draw_head(canvas, face, rng)
    draw_folds(canvas, face)
    draw_mouth(canvas, face, shade)
    draw_beard(canvas, face, head, rng)
    draw_eyes(canvas, face, shade)
    draw_brows(canvas, face, rng)
    draw_glasses(canvas, face)
    draw_hair(canvas, face, texture)
    draw_hat(canvas, face, rng)
    grain = 255.0 * face.noise * rng.standard_normal((V.size, U.size), dtype=np.float32) + 0.5
    pixels = np.empty((V.size, U.size, 3), np.uint8)
    for channel in range(3):
        stored = np.sqrt(np.maximum(canvas[channel] * (face.light_color[channel] ** 0.5 * face.exposure), 0.0))
        stored = np.where(stored > 0.8, 1.0 - 0.04 / np.maximum(stored - 0.6, 0.2), stored)  # film's soft shoulder
        pixels[..., channel] = np.clip(stored * 255.0 + grain, 0.0, 255.0)
    image = Image.fromarray(pixels)
    if face.blur > 0.1:
        image = image.filter(ImageFilter.BoxBlur(face.blur))
    # Output pixel -> canvas pixel: rotate and scale about the point between the eyes.
    c, s = np.cos(face.roll) / face.scale, np.sin(face.roll) / face.scale
    u0, v0 = EYE_CENTER[0] + face.shift[0], EYE_CENTER[1] + face.shift[1]
    a, b = EYE_CENTER[0] + PAD, EYE_CENTER[1] + PAD
    affine = (c, s, a - c * u0 - s * v0, -s, c, b + s * u0 - c * v0)
    return image.transform((WIDTH, HEIGHT), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
