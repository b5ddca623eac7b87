"""The experiments on digits: Fig. 5, 6, 9 to 12, Table II, and the critic's sign."""

from jobs.paper.digit_findings import finish_for, finish_sign
from jobs.paper.digit_units import CRITICS, binary, continuous, critics, dcgan, sign
from jobs.paper.experiments import Experiment

EXPERIMENTS = (
    Experiment("digits_sign", "Eq. 18", "The critic's sign on 8x8 digits", sign, finish_sign, "", "digits8"),
    Experiment(
        "digits_continuous",
        "Fig. 5, 6, Table II",
        "Continuous MNIST: GAN, WGAN, RBM, driven RBM, BEAM",
        continuous,
        finish_for(
            "continuous MNIST",
            ("GAN", "WGAN", "literal-plain", "literal-keep", "literal-control", "literal-beam", "recommended-base",
             "recommended-control", "recommended-beam", "recommended-flipped"),
            ("literal-plain", "literal-keep", "literal-control", "literal-beam", "recommended-control", "recommended-beam"),
            "continuous",
        ),
        "prepare MNIST: make paper MNIST=folder of the four IDX files",
        "digits",
    ),
    Experiment(
        "digits_critics",
        "Fig. 9, 10, 11",
        "Critics from the same likelihood checkpoint: hidden and visible neighbors, forest, network",
        critics,
        finish_for(
            "critics", tuple(f"literal-{c.replace(' ', '_')}" for c in CRITICS),
            tuple(f"literal-{c.replace(' ', '_')}" for c in CRITICS), "critics",
        ),
        "prepare MNIST: make paper MNIST=folder of the four IDX files",
        "digits",
    ),
    Experiment(
        "digits_binary",
        "Fig. 6, second row",
        "Binary MNIST: RBM, driven RBM, BEAM",
        binary,
        finish_for(
            "binary MNIST", ("literal-plain", "literal-control", "literal-beam", "recommended-control", "recommended-beam"),
            ("literal-plain", "literal-control", "literal-beam"), "binary",
        ),
        "prepare MNIST: make paper MNIST=folder of the four IDX files",
        "digits_binary",
    ),
    Experiment(
        "digits_dcgan",
        "Fig. 12",
        "Continuous MNIST: dense GAN against a convolutional one",
        dcgan,
        finish_for("GANs", ("GAN", "DCGAN"), (), "gans"),
        "prepare MNIST: make paper MNIST=folder of the four IDX files",
        "digits",
    ),
)  # fmt: skip
