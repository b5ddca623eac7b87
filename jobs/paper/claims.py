"""The ten claims of the paper, each judged by the figures of the experiments; nothing here can make a claim pass."""

from collections.abc import Callable
from typing import NamedTuple

from jobs.paper.records import Records, late_mean, measured_near, pairs_of, spread_text, units_of
from jobs.paper.training import mean_and_spread


class Verdict(NamedTuple):
    """What came out for a claim."""

    number: int
    claim: str
    verdict: str
    """holds; holds under ...; does not hold; not tested."""
    evidence: list[str]
    """Numbers over seeds, with their spread."""
    commands: list[str]


class Claim(NamedTuple):
    """A sentence of the paper, the experiments that bear on it, and how their figures are read."""

    number: int
    text: str
    needs: tuple[str, ...]
    judge: Callable[[Records], tuple[str, list[str]]]


def judge(records: Records) -> list[Verdict]:
    """A verdict for every claim; "not tested" where a record is missing, or was made of stand-in data."""
    verdicts = []
    for claim in CLAIMS:
        there = {name: records[name] for name in claim.needs if name in records}
        missing = [name for name in claim.needs if name not in records]
        if missing:
            verdict, evidence = "not tested", [f"needs {', '.join(missing)}"]
        else:
            verdict, evidence = claim.judge(there)
        commands = [f"{r['command']} ({r['seconds']} s of one thread; {r['machine']})" for r in there.values()]
        verdicts.append(Verdict(claim.number, claim.text, verdict, evidence, commands))
    return verdicts


# --- the claims ---------------------------------------------------------------------------------------------------------


def _reverse_rises(records: Records) -> tuple[str, list[str]]:
    record = records["digits_continuous"]
    epoch = record["numbers"]["epoch"]
    holds, evidence = {}, []
    for reading in ("literal", "recommended"):
        runs = units_of(record, f"{reading}-base")
        rises = []
        for protocol in ("fresh noisy", "driven noisy", "persistent noisy"):
            early = [measured_near(run, 5 * epoch, protocol, "reverse") for run in runs]
            late = [measured_near(run, 25 * epoch, protocol, "reverse") for run in runs]
            falls = [
                measured_near(r, 25 * epoch, protocol, "forward") - measured_near(r, 5 * epoch, protocol, "forward")
                for r in runs
            ]
            rises.append(all(b > 2 * max(a, 0) and b > a for a, b in zip(early, late)) and all(f < 0 for f in falls))
            change = f"reverse {spread_text(early)} to {spread_text(late)}, forward by {spread_text(falls)}"
            evidence.append(f"{reading}, {protocol}, epoch 5 to 25: {change}")
        holds[reading] = rises[0] and rises[1]  # from a wide start, as the paper looks at it
    if all(holds.values()):
        return "holds", evidence
    return ("holds where sigma shrinks" if holds["literal"] else "does not hold"), evidence


def _beam_lowers_both(records: Records) -> tuple[str, list[str]]:
    record = records["digits_continuous"]
    evidence, beats, lowers = [], [], []
    for reading, kinds in (
        ("literal", ("driven noisy", "persistent noisy")),
        ("recommended", ("driven mean", "persistent mean")),
    ):
        base = units_of(record, f"{reading}-base")
        for protocol in kinds:
            pairs = pairs_of(record, f"{reading}-beam", f"{reading}-control")
            reverse = [
                late_mean(beam, protocol, "reverse") / late_mean(control, protocol, "reverse")
                for beam, control in pairs
            ]
            forward = [
                late_mean(beam, protocol, "forward") - late_mean(control, protocol, "forward")
                for beam, control in pairs
            ]
            change = {
                metric: [
                    late_mean(beam, protocol, metric, 1) - late_mean(b, protocol, metric, 1)
                    for (beam, _), b in zip(pairs, base)
                ]
                for metric in ("forward", "reverse")
            }
            beats.append(sum(reverse) / len(reverse) < 0.8)
            lowers.append(all(mean_and_spread(change[m])[0] < 0.005 for m in change))
            evidence.append(
                f"{reading}, {protocol}: reverse {spread_text(reverse)} of the same-rate control's, "
                f"forward by {spread_text(forward)}; since the switch forward by {spread_text(change['forward'])}, "
                f"reverse by {spread_text(change['reverse'])}"
            )
    if all(beats) and all(lowers):
        return "holds", evidence
    if any(beats) and any(lowers):
        return "holds in part", evidence
    return "does not hold", evidence


_LEARNED = {"bimodal": 2, "ring": 8, "grid": 23}


def _comparable_to_gans(records: Records) -> tuple[str, list[str]]:
    evidence: list[str] = []
    learned: dict[str, dict[str, bool]] = {}
    for mixture, modes in _LEARNED.items():
        record = records[f"mixture_{mixture}"]
        for kind, protocol in (("literal", "hot"), ("recommended", "fresh")):
            for model in ("GAN", "WGAN", "RBM", "driven_RBM", "BEAM"):
                runs = units_of(record, f"{kind}-{model}")
                key = "generator" if model.endswith("GAN") else protocol
                if runs:
                    good = [run[key]["modes"] >= modes and run[key]["precision"] >= 0.9 for run in runs]
                    name = model if model.endswith("GAN") else f"{kind} {model}"
                    learned.setdefault(name, {})[mixture] = sum(good) > len(good) / 2
                    precision = spread_text([run[key]["precision"] for run in runs])
                    found = " ".join(str(run[key]["modes"]) for run in runs)
                    evidence.append(f"{mixture}, {name}: modes {found}, precision {precision}")
    all_three = [name for name, kinds in learned.items() if len(kinds) == 3 and all(kinds.values())]
    evidence.insert(
        0, f"all three mixtures (modes {_LEARNED}, precision .9, most seeds): {', '.join(all_three) or 'no model'}"
    )
    only_beam = bool(all_three) and all("BEAM" in name for name in all_three)
    record = records["digits_continuous"]
    beam = [late_mean(run, "driven mean", "reverse") for run in units_of(record, "literal-beam")]
    gan = [late_mean(run, "generator mean", "reverse") for run in units_of(record, "GAN")]
    evidence.append(
        f"continuous MNIST, reverse KL of means: literal BEAM, driven chains {spread_text(beam)}, GAN {spread_text(gan)}"
    )
    comparable = sum(beam) / len(beam) < 2 * sum(gan) / len(gan)
    first = "comparable: holds within a factor of 2" if comparable else "comparable: does not hold"
    return f"{first}; only one on all three: {'holds' if only_beam else 'does not hold'}", evidence


def _stable(records: Records) -> tuple[str, list[str]]:
    evidence, steady = [], []
    for mixture in _LEARNED:
        for kind, protocol in (("literal", "hot"), ("recommended", "fresh")):
            runs = units_of(records[f"mixture_{mixture}"], f"{kind}-BEAM")
            precision = [run[protocol]["precision"] for run in runs]
            steady.append(max(precision) - min(precision) < 0.1)
            evidence.append(f"{mixture}, {kind} BEAM, precision over seeds: {' '.join(f'{p:.3f}' for p in precision)}")
    runs = units_of(records["digits_continuous"], "literal-beam")
    evidence.append(
        f"MNIST, literal BEAM, driven reverse KL: {spread_text([late_mean(r, 'driven noisy', 'reverse') for r in runs])}"
    )
    evidence.append("no run ended with a value that is not finite (a failed unit would leave no record)")
    return ("holds" if all(steady) else "holds in part: seeds differ"), evidence


def _hidden_critic(records: Records) -> tuple[str, list[str]]:
    record = records["digits_critics"]
    epoch, switch = record["numbers"]["epoch"], record["numbers"]["switch"]
    evidence, faster = [], []
    for after in (5, 10, 15):
        values = {}
        for critic in ("hidden_neighbors", "visible_neighbors", "hidden_forest", "hidden_network"):
            runs = units_of(record, f"literal-{critic}")
            values[critic] = [measured_near(run, switch + after * epoch, "driven noisy", "reverse") for run in runs]
        pairs = zip(values["hidden_neighbors"], values["visible_neighbors"])
        faster.append(all(hidden < visible for hidden, visible in pairs))
        found = ", ".join(f"{name.replace('_', ' ')} {spread_text(v)}" for name, v in values.items())
        evidence.append(f"reverse KL {after} epochs after the switch, driven chains: {found}")
    return ("holds" if all(faster) else "holds in part" if any(faster) else "does not hold"), evidence


def _cost(records: Records) -> tuple[str, list[str]]:
    record = records["digits_continuous"]
    rates = {
        kind: [run["updates_per_second"] for run in units_of(record, f"literal-{kind}")]
        for kind in ("beam", "control", "plain")
    }
    ratio = [control / beam for beam, control in zip(rates["beam"], rates["control"])]
    plain = [p / beam for beam, p in zip(rates["beam"], rates["plain"])]
    evidence = [
        f"time of a BEAM's update: {spread_text(ratio)} of one without the adversary, {spread_text(plain)} of plain PCD's",
        "beside other work on the same machine: the benchmarks measure it alone",
    ]
    return ("holds" if max(ratio) < 1.5 else "does not hold"), evidence


def _driven_sampler(records: Records) -> tuple[str, list[str]]:
    numbers = records["sampling"]["numbers"]
    evidence, mixes, close, tails = [], [], [], []
    for name, geometry in numbers.items():
        mixes.append(geometry["driven_switches"] > geometry["gibbs_switches"])
        tails.append(geometry["driven_tail"] > geometry["true_tail"])
        close.append(abs(geometry["driven_variance"] / geometry["true_variance"] - 1) < 0.1)
        evidence.append(
            f"{name}: mode switches per 1 000 sweeps {geometry['driven_switches']:.3g}, vs {geometry['gibbs_switches']:.3g}; "
            f"variance {geometry['driven_variance']:.3g} (true {geometry['true_variance']:.3g}), "
            f"mass beyond 3 sd of every mode {geometry['driven_tail']:.3g} (true {geometry['true_tail']:.3g}); "
            f"with v drawn again at beta = 1: variance {geometry['cooled_variance']:.3g}"
        )
    parts = [
        f"mixes faster: {'holds' if all(mixes) else 'does not hold'}",
        f"fatter tails: {'holds' if all(tails) else 'does not hold'}",
        f"averages within 10 %: {'holds' if all(close) else 'does not hold'}",
    ]
    return "; ".join(parts), evidence


def _faces(records: Records, first: str, second: str) -> tuple[dict[str, list[float]], list[str]]:
    """Differences `first` - `second` in the faces' scores over seeds, and the lines that say so."""
    record = records["faces"]
    pairs = pairs_of(record, first, second)
    differences: dict[str, list[float]] = {}
    evidence = []
    for part, metric in (
        ("latent", "frechet_latent"),
        ("latent", "recall"),
        ("latent", "variance_ratio"),
        ("latent", "kl_reverse"),
        ("pixels", "mmd"),
        ("pixels", "sharpness"),
    ):
        values = [(a[part][metric], b[part][metric]) for a, b in pairs]
        differences[metric] = [a - b for a, b in values]
        evidence.append(
            f"{metric}: {first.replace('_', ' ')} {spread_text([a for a, _ in values])}, "
            f"{second.replace('_', ' ')} {spread_text([b for _, b in values])}"
        )
    return differences, evidence


def _centering(records: Records) -> tuple[str, list[str]]:
    differences, evidence = _faces(records, "centered_BEAM", "BEAM_not_centered")
    sharper = all(d > 0 for d in differences["sharpness"])
    diverse = all(d > 0 for d in differences["variance_ratio"]) and all(d > 0 for d in differences["recall"])
    better = all(d < 0 for d in differences["frechet_latent"])
    verdict = "holds" if sharper and diverse and better else "holds in part" if sharper or diverse else "does not hold"
    return verdict, evidence


def _larger_gamma(records: Records) -> tuple[str, list[str]]:
    differences, evidence = _faces(records, "centered_gamma_.5", "centered_BEAM")
    sharper = all(d > 0 for d in differences["sharpness"])
    less_consistent = all(d > 0 for d in differences["frechet_latent"])
    return (
        "holds" if sharper and less_consistent else "holds in part" if sharper or less_consistent else "does not hold"
    ), evidence


def _kinds_of_data(records: Records) -> tuple[str, list[str]]:
    evidence = []
    gains = {}
    for name, label in (("digits_continuous", "continuous"), ("digits_binary", "binary")):
        record = records[name]
        for protocol in ("fresh noisy", "driven noisy", "persistent noisy"):
            found = {
                kind: [late_mean(run, protocol, "reverse") for run in units_of(record, f"literal-{kind}")]
                for kind in ("plain", "control", "beam")
            }
            forward = {
                kind: [late_mean(run, protocol, "forward") for run in units_of(record, f"literal-{kind}")]
                for kind in ("plain", "control", "beam")
            }
            gains[label, protocol] = mean_and_spread(found["control"])[0] - mean_and_spread(found["beam"])[0]
            said = ", ".join(f"{kind} {spread_text(forward[kind])} / {spread_text(found[kind])}" for kind in found)
            evidence.append(f"{label}, {protocol}, forward / reverse: {said}")
    continuous = all(gains["continuous", p] > 0 for p in ("fresh noisy", "driven noisy"))
    binary = all(gains["binary", p] > 0 for p in ("fresh noisy", "driven noisy"))
    evidence.append("GANs on discrete data were not built, as in the paper")
    parts = [
        f"BEAM helps on continuous data: {'holds' if continuous else 'does not hold'}",
        f"on binary data: {'holds' if binary else 'does not hold'}",
    ]
    return "; ".join(parts), evidence


CLAIMS = (
    Claim(
        1, "Maximum likelihood lowers the forward KL while the reverse KL rises", ("digits_continuous",), _reverse_rises
    ),
    Claim(2, "A BEAM with the driven sampler lowers both", ("digits_continuous",), _beam_lowers_both),
    Claim(
        3,
        "A BEAM is comparable to or better than GANs, and the only model that learns all three mixtures",
        ("mixture_bimodal", "mixture_ring", "mixture_grid", "digits_continuous"),
        _comparable_to_gans,
    ),
    Claim(
        4,
        "Training is stable over seeds",
        ("mixture_bimodal", "mixture_ring", "mixture_grid", "digits_continuous"),
        _stable,
    ),
    Claim(
        5,
        "A critic on the hidden layer lowers the reverse KL faster than one on the visible",
        ("digits_critics",),
        _hidden_critic,
    ),
    Claim(6, "A BEAM costs about what PCD costs", ("digits_continuous",), _cost),
    Claim(
        7,
        "The driven sampler mixes faster and keeps averages close; fatter tails; no reweighting needed",
        ("sampling",),
        _driven_sampler,
    ),
    Claim(8, "Centering sharpens and diversifies the faces", ("faces",), _centering),
    Claim(9, "A larger gamma gives sharper, less consistent faces", ("faces",), _larger_gamma),
    Claim(
        10,
        "Continuous data are hard for an RBM and easy for a BEAM; discrete data are easy for a BEAM",
        ("digits_continuous", "digits_binary"),
        _kinds_of_data,
    ),
)
