"""The ten claims of the paper, each judged by the figures of the experiments; nothing here can make a claim pass."""

from collections.abc import Callable
from typing import NamedTuple

from jobs.paper.records import (
    Records,
    above,
    below,
    late_mean,
    measured_near,
    no_higher,
    pairs_of,
    protocol_of,
    spread_text,
    units_of,
)
from jobs.paper.training import mean_and_spread

SLIGHT = 0.005
"""Nats per dimension below which a difference on digits is called none; two sets of real images differ by .002."""


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
    """A verdict for every claim; "not tested" where a record is missing."""
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
    evidence: list[str] = []
    fell, lower, paid = [], [], []
    for reading, kinds in (
        ("literal", ("driven noisy", "persistent noisy")),
        ("recommended", ("driven mean", "persistent mean")),
    ):
        base = units_of(record, f"{reading}-base")
        for protocol in kinds:
            pairs = pairs_of(record, f"{reading}-beam", f"{reading}-control")
            against = {
                metric: [late_mean(a, protocol, metric) - late_mean(b, protocol, metric) for a, b in pairs]
                for metric in ("forward", "reverse")
            }
            change = {
                metric: [
                    late_mean(beam, protocol, metric) - late_mean(b, protocol, metric, 1)
                    for (beam, _), b in zip(pairs, base)
                ]
                for metric in ("forward", "reverse")
            }
            control = [late_mean(b, protocol, "reverse") for _, b in pairs]
            evidence.append(
                f"{reading}, {protocol}: reverse {spread_text(against['reverse'])} against the same-rate control "
                f"({spread_text(control)}), forward {spread_text(against['forward'])}; since the switch forward "
                f"{spread_text(change['forward'])}, reverse {spread_text(change['reverse'])}"
            )
            # toward zero from above: below it the reverse KL says noise, not quality
            beam = [late_mean(a, protocol, "reverse") for a, _ in pairs]
            positive = mean_and_spread(control)[0] > 0 and mean_and_spread(beam)[0] > -SLIGHT
            fell.append(below(change["reverse"], SLIGHT) and positive and below(change["forward"], SLIGHT))
            lower.append(below(against["reverse"], SLIGHT) and positive)
            paid.append(not no_higher(against["forward"], SLIGHT))
    parts = (
        f"both fall after the switch in {sum(fell)} of {len(fell)} readings; against the same-rate control the reverse KL is "
        f"lower in {sum(lower)}, and the forward KL higher in {sum(paid)}"
    )
    if all(fell) and all(lower) and not any(paid):
        return f"holds: {parts}", evidence
    return f"{'holds in part' if any(fell) or any(lower) else 'does not hold'}: {parts}", evidence


_LEARNED = {"bimodal": 2, "ring": 8, "grid": 23}


def _comparable_to_gans(records: Records) -> tuple[str, list[str]]:
    evidence: list[str] = []
    learned: dict[str, dict[str, bool]] = {}
    for mixture, modes in _LEARNED.items():
        record = records[f"mixture_{mixture}"]
        for kind in ("literal", "recommended"):
            for model in ("GAN", "WGAN", "RBM", "driven_RBM", "BEAM"):
                runs = units_of(record, f"{kind}-{model}")
                if (kind, model) == ("recommended", "GAN"):
                    runs = units_of(records["mixture_gans"], f"{mixture}-GAN")
                key = protocol_of(kind, model)
                if runs:
                    good = [run[key]["modes"] >= modes and run[key]["precision"] >= 0.9 for run in runs]
                    name = f"{kind} {model}"
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
    scores: dict[str, dict[str, list[float]]] = {}
    for name, kind, protocol in (
        ("literal BEAM", "literal-beam", "driven mean"),
        ("recommended BEAM", "recommended-beam", "driven mean"),
        ("GAN", "GAN", "generator mean"),
        ("WGAN", "WGAN", "generator mean"),
    ):
        runs = units_of(record, kind)
        scores[name] = {
            m: [late_mean(run, protocol, m) for run in runs] for m in ("forward", "reverse", "recall", "classes")
        }
        said = ", ".join(f"{metric} {spread_text(values)}" for metric, values in scores[name].items())
        evidence.append(f"continuous MNIST, {name}, {protocol}: {said}")
    pictures = record["units"].get("pictures", {})
    for name in ("literal-beam-0", "recommended-beam-0", "GAN-0", "WGAN-0"):
        if name in pictures:
            said = ", ".join(f"{m} {pictures[name][m]:.3g}" for m in ("mmd", "precision", "recall"))
            evidence.append(
                f"continuous MNIST, {name} by fixed features of the pictures, which do not enter the verdict: {said}"
            )

    # no farther from the data's own value, 0, than either GAN by more than .1 nats per dimension, in both directions
    def far(name: str, metric: str) -> float:
        return abs(mean_and_spread(scores[name][metric])[0])

    comparable = any(
        all(far(beam, m) < far(gan, m) + 0.1 for gan in ("GAN", "WGAN") for m in ("forward", "reverse"))
        for beam in ("literal BEAM", "recommended BEAM")
    )
    first = f"comparable on MNIST, within .1 nats per dimension both ways: {'holds' if comparable else 'does not hold'}"
    return f"{first}; only one on all three mixtures: {'holds' if only_beam else 'does not hold'}", evidence


def _stable(records: Records) -> tuple[str, list[str]]:
    evidence, steady = [], []
    for mixture in _LEARNED:
        for kind in ("literal", "recommended"):
            runs = units_of(records[f"mixture_{mixture}"], f"{kind}-BEAM")
            precision = [run[protocol_of(kind, "BEAM")]["precision"] for run in runs]
            steady.append(max(precision) - min(precision) < 0.1)
            evidence.append(f"{mixture}, {kind} BEAM, precision over seeds: {' '.join(f'{p:.3f}' for p in precision)}")
    for reading in ("literal", "recommended"):
        runs = units_of(records["digits_continuous"], f"{reading}-beam")
        reverse = [late_mean(r, "driven noisy", "reverse") for r in runs]
        steady.append(max(reverse) - min(reverse) < 0.1)
        evidence.append(f"MNIST, {reading} BEAM, driven reverse KL over seeds: {' '.join(f'{r:.3f}' for r in reverse)}")
    evidence.append("steady is not good: see the precision that is steadily low")
    evidence.append(
        "steady: seeds within .1 in precision, and within .1 nats per dimension; a run that is not finite fails its "
        "experiment, so all of these ended"
    )
    return (
        "holds" if all(steady) else f"holds in part: {sum(steady)} of {len(steady)} kinds of run are steady"
    ), evidence


def _hidden_critic(records: Records) -> tuple[str, list[str]]:
    record = records["digits_critics"]
    evidence, faster = [], []
    for protocol in ("driven noisy", "persistent noisy"):
        found = {
            critic: {
                metric: [late_mean(run, protocol, metric) for run in units_of(record, f"literal-{critic}")]
                for metric in ("forward", "reverse", "precision")
            }
            for critic in ("hidden_neighbors", "visible_neighbors", "hidden_forest", "hidden_network")
        }
        hidden, visible = found["hidden_neighbors"], found["visible_neighbors"]
        less = [a - b for a, b in zip(hidden["reverse"], visible["reverse"])]
        paid = [a - b for a, b in zip(hidden["forward"], visible["forward"])]
        faster.append(below(less, SLIGHT) and no_higher(paid, SLIGHT))
        said = "; ".join(
            f"{name.replace('_', ' ')} {' / '.join(spread_text(values) for values in v.values())}"
            for name, v in found.items()
        )
        evidence.append(
            f"{protocol}, forward / reverse KL / precision, means over the 15 epochs after the switch: {said}"
        )
        evidence.append(f"{protocol}, hidden less visible: reverse {spread_text(less)}, forward {spread_text(paid)}")
    return ("holds" if all(faster) else "holds in part" if any(faster) else "does not hold"), evidence


def _cost(records: Records) -> tuple[str, list[str]]:
    record = records["digits_continuous"]
    rates = {
        kind: [run["updates_per_second"] for run in units_of(record, f"literal-{kind}")]
        for kind in ("beam", "control", "plain")
    }
    ratio, plain = (
        [other / beam for beam, other in zip(rates["beam"], rates[kind]) if other and beam]
        for kind in ("control", "plain")
    )
    if not ratio or not plain:
        return "not tested", ["the runs were too short to have a rate"]
    evidence = [
        f"time of a BEAM's update: {spread_text(ratio)} of one without the adversary, {spread_text(plain)} of plain PCD's",
        "beside other work on the same machine: the benchmarks measure it alone",
    ]
    return ("holds" if max(*ratio, *plain) < 1.5 else "does not hold"), evidence


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
        f"no reweighting or sweep at beta = 1 needed: {'holds' if all(close) and not any(tails) else 'does not hold'}",
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
        values = [(a[part][metric], b[part][metric]) for a, b in pairs if part in a and part in b]
        if not values:
            continue
        differences[metric] = [a - b for a, b in values]
        evidence.append(
            f"{metric}: {first.replace('_', ' ')} {spread_text([a for a, _ in values])}, "
            f"{second.replace('_', ' ')} {spread_text([b for _, b in values])}"
        )
    return differences, evidence


def _centering(records: Records) -> tuple[str, list[str]]:
    differences, evidence = _faces(records, "centered_BEAM", "BEAM_not_centered")
    sharper = above(differences["sharpness"])
    diverse = above(differences["variance_ratio"]) and above(differences["recall"])
    better = below(differences["frechet_latent"])
    verdict = "holds" if sharper and diverse and better else "holds in part" if sharper or diverse else "does not hold"
    deeper, more = _faces(records, "two_layers_tied", "centered_BEAM")
    tests = {"frechet_latent": below, "kl_reverse": below, "recall": above, "variance_ratio": above}
    gains = [metric for metric, better in tests.items() if better(deeper[metric])]
    losses = [metric for metric, better in tests.items() if (above if better is below else below)(deeper[metric])]
    found = "holds" if gains and not losses else "does not hold" if not gains else "holds in part"
    if gains and losses:
        found += f" (better: {', '.join(gains)}; worse: {', '.join(losses)})"
    return f"centering: {verdict}; two layers: {found}", [*evidence, *more]


def _larger_gamma(records: Records) -> tuple[str, list[str]]:
    differences, evidence = _faces(records, "centered_gamma_.5", "centered_BEAM")
    parts = {"sharper": "sharpness", "less consistent (a larger Frechet distance)": "frechet_latent"}
    said = (f"{part}: {'holds' if above(differences[key]) else 'does not hold'}" for part, key in parts.items())
    return "; ".join(said), evidence


def _where(protocols: tuple[str, ...], holds: list[bool]) -> str:
    kinds = [protocol.split()[0] for protocol, true in zip(protocols, holds) if true]
    return "holds" if all(holds) else f"holds for {' and '.join(kinds)} chains" if kinds else "does not hold"


def _kinds_of_data(records: Records) -> tuple[str, list[str]]:
    evidence, helps, fails = [], {}, {}
    protocols = ("fresh noisy", "driven noisy", "persistent noisy")
    for name, label in (("digits_continuous", "continuous"), ("digits_binary", "binary")):
        record = records[name]
        better, hard = [], []
        for protocol in protocols:
            found = {
                kind: {
                    metric: [
                        late_mean(run, protocol, metric)
                        for run in units_of(record, f"literal-{kind}")
                        if protocol in run["measured"][-1]
                    ]
                    for metric in ("forward", "reverse")
                }
                for kind in ("plain", "control", "beam")
            }
            said = ", ".join(f"{k} {spread_text(v['forward'])} / {spread_text(v['reverse'])}" for k, v in found.items())
            evidence.append(f"{label}, {protocol}, forward / reverse: {said}")
            gain = {m: [a - b for a, b in zip(found["beam"][m], found["control"][m])] for m in ("forward", "reverse")}
            better.append(below(gain["reverse"], SLIGHT) and no_higher(gain["forward"], SLIGHT))
            lead = {m: [a - b for a, b in zip(found["plain"][m], found["beam"][m])] for m in ("forward", "reverse")}
            worse, better_in = ([test(lead[m], SLIGHT) for m in lead] for test in (above, below))
            hard.append(any(worse) and not any(better_in))
        helps[label], fails[label] = (_where(protocols, tests) for tests in (better, hard))
    units = records["digits_binary"]["units"]
    for kind in sorted({name.rpartition("-")[0] for name in units if name.startswith("literal-")} - {"literal-base"}):
        runs = units_of(records["digits_binary"], kind)
        both = [spread_text([late_mean(run, "driven noisy", m) for run in runs]) for m in ("forward", "reverse")]
        evidence.append(f"binary, {kind}, driven noisy: forward {both[0]}, reverse {both[1]}")
    evidence.append("GANs on discrete data were not built, as in the paper")
    parts = [
        f"the plain RBM is worse than the BEAM on continuous data: {fails['continuous']}",
        f"the adversary helps on continuous data: {helps['continuous']}",
        f"on binary data: {helps['binary']}",
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
        ("mixture_bimodal", "mixture_ring", "mixture_grid", "mixture_gans", "digits_continuous"),
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
    Claim(8, "Centering sharpens and diversifies the faces; deep models help further", ("faces",), _centering),
    Claim(9, "A larger gamma gives sharper, less consistent faces", ("faces",), _larger_gamma),
    Claim(
        10,
        "Continuous data are hard for an RBM and easy for a BEAM; discrete data are easy for a BEAM",
        ("digits_continuous", "digits_binary"),
        _kinds_of_data,
    ),
)
