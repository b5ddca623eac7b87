"""What an honest implementation should reach, set before these figures were known, and what came out."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

from jobs.paper.records import (
    Records,
    above,
    below,
    late_mean,
    measured_near,
    no_higher,
    pairs_of,
    spread_text,
    units_of,
)
from jobs.paper.training import mean_and_spread


class Bar(NamedTuple):
    """A bar and whether it was reached."""

    what: str
    bar: str
    found: str
    met: bool


def compare(records: Records) -> list[Bar]:
    """All bars whose experiments are there."""
    return [bar for name, look in _BARS.items() if name in records for bar in look(records[name])]


class _Limits(NamedTuple):
    modes: int
    precision: float
    forward: float
    reverse: float

    def __str__(self) -> str:
        return f"{self.modes} modes, precision {self.precision}, F {self.forward}, R {self.reverse}"

    def meets(self, modes: float, precision: float, forward: float, reverse: float) -> bool:
        """True when all four are within the limits."""
        good = modes >= self.modes and precision >= self.precision
        return good and forward <= self.forward and reverse <= self.reverse


_KEYS = ("modes", "precision", "forward", "reverse")
_BIMODAL, _RING = _Limits(2, 0.985, 0.12, 0.12), _Limits(8, 0.96, 0.20, 0.12)
_RING_BEAM, _GRID = _Limits(8, 0.94, 0.25, 0.15), _Limits(23, 0.95, 0.5, 0.5)


def _points(what: str, runs: Sequence[dict[str, Any]], limits: _Limits, each: bool = False) -> Bar:
    """Fresh chains against limits: the median of every figure, or with `each` every run."""
    rows = [tuple(run["fresh"][key] for key in _KEYS) for run in runs]
    middle = tuple(median(column) for column in zip(*rows))
    met = all(limits.meets(*row) for row in rows) if each else limits.meets(*middle)
    found = "; ".join(f"{m:g}, {p:.3f}, {f:.2f}, {r:.2f}" for m, p, f, r in (rows if each else [middle]))
    kind = f"each of {len(rows)} seeds" if each else f"median of {len(rows)}"
    return Bar(f"{what} ({kind})", str(limits), found, met)


def _bimodal(record: dict[str, Any]) -> Iterator[Bar]:
    for model in ("driven_RBM", "BEAM"):
        yield _points(f"bimodal, recommended, {model}", units_of(record, f"recommended-{model}"), _BIMODAL)


def _ring(record: dict[str, Any]) -> Iterator[Bar]:
    driven = units_of(record, "recommended-driven_RBM")
    yield _points("ring, recommended, driven RBM", driven, _RING)
    worst = min(run["fresh"]["precision"] for run in driven)
    yield Bar("the same, worst seed", "precision .93", f"{worst:.3f}", worst >= 0.93)
    yield _points("ring, recommended, BEAM", units_of(record, "recommended-BEAM"), _RING_BEAM, each=True)
    plain = median(run["fresh"]["precision"] for run in units_of(record, "literal-RBM"))
    hot = [run["hot"] for run in units_of(record, "literal-driven_RBM")]
    precision, modes = median(run["precision"] for run in hot), median(run["modes"] for run in hot)
    yield Bar(
        "ring, literal: the paper's contrast",
        "RBM precision < .40, driven > .90 with 8 modes (as sampled in training)",
        f"{plain:.2f}; {precision:.2f} with {modes:g}",
        plain < 0.4 and precision > 0.9 and modes == 8,
    )


def _grid(record: dict[str, Any]) -> Iterator[Bar]:
    for model in ("driven_RBM", "BEAM"):
        yield _points(f"grid, recommended, {model}", units_of(record, f"recommended-{model}"), _GRID)


_ELSEWHERE = {
    "bimodal_moved_x10": (_BIMODAL, _BIMODAL),
    "ring_of_12": (_RING._replace(modes=12), _RING_BEAM._replace(modes=12)),
    "ring_moved_x10": (_RING, _RING_BEAM),
    "grid_4x6": (_GRID._replace(modes=22), _GRID._replace(modes=22)),
    "grid_moved_x10": (_GRID, _GRID),
}


def _geometry(record: dict[str, Any]) -> Iterator[Bar]:
    for label, (driven, beam) in _ELSEWHERE.items():
        for model, limits in (("driven_RBM", driven), ("BEAM", beam)):
            runs = units_of(record, f"{label}-{model}")
            each = model == "BEAM" and label.startswith("ring")  # as on the ring of Table I
            yield _points(f"{label.replace('_', ' ')}, {model}", runs, limits, each)


def _continuous(record: dict[str, Any]) -> Iterator[Bar]:
    epoch = record["numbers"]["epoch"]
    for protocol in ("fresh noisy", "driven noisy"):
        runs = units_of(record, "literal-base")
        early, late = ([measured_near(run, n * epoch, protocol, "reverse") for run in runs] for n in (5, 25))
        falls = [
            1 - measured_near(run, 25 * epoch, protocol, "forward") / measured_near(run, 5 * epoch, protocol, "forward")
            for run in runs
        ]
        first, last, fall = (mean_and_spread(values)[0] for values in (early, late, falls))
        found = f"{first:.3f} to {last:.3f}, F down {100 * fall:.0f} %"
        met = last > 2 * max(first, 0) and above([b - a for a, b in zip(early, late)]) and fall >= 0.3
        what = f"MNIST, literal likelihood phase, {protocol}"
        yield Bar(what, "R more than doubles from epoch 5 to 25, F down 30 %", found, met)
    for protocol in ("fresh noisy", "driven noisy", "persistent noisy"):
        runs = units_of(record, "recommended-base")
        change = [
            measured_near(run, 25 * epoch, protocol, "reverse") - measured_near(run, 5 * epoch, protocol, "reverse")
            for run in runs
        ]
        what = f"MNIST, recommended likelihood phase, {protocol}"
        yield Bar(what, "R flat or falling from epoch 5 to 25", f"by {spread_text(change)}", no_higher(change, 0.005))
    kinds = {"literal": ("driven noisy", "persistent noisy"), "recommended": ("driven mean", "persistent mean")}
    for reading, protocols in kinds.items():
        for protocol in protocols:
            ends = {
                phase: {
                    metric: mean_and_spread([late_mean(run, protocol, metric) for run in runs])
                    for metric in ("forward", "reverse")
                }
                for phase in ("beam", "control")
                for runs in [units_of(record, f"{reading}-{phase}")]
            }
            (f, _), (r, rs) = ends["beam"]["forward"], ends["beam"]["reverse"]
            (cf, _), (cr, crs) = ends["control"]["forward"], ends["control"]["reverse"]
            # a ratio says something only of values that are positive by more than their spread
            met = (
                cr > crs and -0.005 < r < 0.8 * cr and f <= max(1.3 * cf, cf + 0.01)
            )  # 30 % of an F near zero is nothing
            found = f"R {r:.3f} +- {rs:.2g} against {cr:.3f} +- {crs:.2g}; F {f:.3f} against {cf:.3f}"
            what = f"MNIST, {reading} BEAM against the same-rate control, {protocol}"
            yield Bar(what, "R below .8 of it, F at most 1.3 of it (or .01 more)", found, met)
    for reading in kinds:
        classes = [late_mean(run, "driven mean", "classes") for run in units_of(record, f"{reading}-beam")]
        yield _at_least(f"MNIST, {reading} BEAM, driven chains: classes", classes, 8)
    gans = units_of(record, "GAN")
    reverse = mean_and_spread([late_mean(run, "generator mean", "reverse", 1) for run in gans])[0]
    found_classes = mean_and_spread([late_mean(run, "generator mean", "classes", 1) for run in gans])[0]
    found = f"{reverse:.2f}; {found_classes:.1f}"
    yield Bar("MNIST, GAN", "R below .25, 7 classes", found, reverse < 0.25 and found_classes >= 7)
    for reading in ("literal", "recommended"):
        flipped = units_of(record, f"{reading}-flipped")
        right = units_of(record, f"{reading}-beam")[: len(flipped)]
        step = flipped[0]["measured"][-1]["step"]
        wrong_r, right_r = (
            mean_and_spread([measured_near(run, step, "persistent mean", "reverse") for run in runs])[0]
            for runs in (flipped, right)
        )
        few = mean_and_spread([measured_near(run, step, "persistent mean", "classes") for run in flipped])[0]
        yield Bar(
            f"MNIST, {reading}, critic's sign flipped for 5 epochs, persistent means",
            "R more than 4 times the right sign's, fewer than 4 classes",
            f"{wrong_r:.2f} against {right_r:.2f}; {few:.1f} classes",
            wrong_r > 4 * right_r > 0 and few < 4,
        )


def _at_least(what: str, values: Sequence[float], least: float) -> Bar:
    mean, spread = mean_and_spread(values)
    return Bar(what, f"at least {least:g}", f"{mean:.2f} +- {spread:.2g}", mean >= least)


def _sign(record: dict[str, Any]) -> Iterator[Bar]:
    right, wrong = (
        mean_and_spread([late_mean(run, "driven noisy", "reverse", 1) for run in units_of(record, f"binary-{phase}")])[
            0
        ]
        for phase in ("beam", "flipped")
    )
    found = f"{wrong:.2f} against {right:.2f}"
    yield Bar(
        "binary 8x8 digits, wrong sign", "reverse KL above the right sign's by more than .5", found, wrong > right + 0.5
    )


def _faces(record: dict[str, Any]) -> Iterator[Bar]:
    pairs = pairs_of(record, "two_layers_tied", "centered_BEAM")
    change = {m: [a["latent"][m] - b["latent"][m] for a, b in pairs] for m in ("frechet_latent", "recall")}
    yield Bar(
        "faces, two layers against one",
        "recall or Frechet distance better",
        ", ".join(f"{name} by {spread_text(values)}" for name, values in change.items()),
        below(change["frechet_latent"]) or above(change["recall"]),
    )
    seconds = record["unit_seconds"]
    beam = seconds["autoencoder"] + seconds["centered_BEAM-0"]  # with their scores, as the GANs'
    for name in ("DCGAN", "DCWGAN"):
        own = seconds[f"{name}-0"]
        found = f"{own:.0f} s against {beam:.0f} s"
        yield Bar(
            f"faces, {name}: wall time", "within a fifth of autoencoder and BEAM", found, abs(own / beam - 1) < 0.2
        )


_BARS: dict[str, Callable[[dict[str, Any]], Iterator[Bar]]] = {
    "mixture_bimodal": _bimodal,
    "mixture_ring": _ring,
    "mixture_grid": _grid,
    "geometry": _geometry,
    "digits_continuous": _continuous,
    "digits_sign": _sign,
    "faces": _faces,
}
