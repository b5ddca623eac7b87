"""Other RBM trainers behind the same `update()`: rbms (`pip install rbms`) and scikit-learn's BernoulliRBM, Bernoulli only."""

import warnings

import torch
from sklearn.neural_network import BernoulliRBM

from benchmarks.loops import Problem, Update


def rbms_loop(p: Problem) -> Update:
    """One batch of its PCD trainer: centered gradient of unit norm, SGD; its own file writing is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it compiles with TorchScript
        from rbms.bernoulli_bernoulli.classes import BBRBM
        from rbms.training.pcd import fit_batch_pcd
    model = BBRBM(0.01 * torch.randn(p.visible, p.hidden), torch.zeros(p.visible), torch.zeros(p.hidden))
    model.init_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, maximize=True)
    ones = torch.ones(p.batch)
    state = {"chains": model.init_chains(p.chains)}

    @torch.no_grad()
    def update() -> None:
        picked = torch.randint(len(p.rows), (p.batch,))
        optimizer.zero_grad(set_to_none=False)
        state["chains"], _ = fit_batch_pcd((p.rows[picked], ones), state["chains"], model, p.sweeps, 1.0)
        optimizer.step()

    return update


def sklearn_loop(p: Problem) -> Update:
    """`partial_fit` on a batch: PCD with one sweep, as many chains as rows; float32."""
    if p.sweeps != 1 or p.chains != p.batch:
        raise ValueError("BernoulliRBM makes one sweep, with as many chains as rows")
    rows = p.rows.numpy()
    model = BernoulliRBM(p.hidden, learning_rate=0.01, batch_size=p.batch, random_state=0)

    def update() -> None:
        model.partial_fit(rows[torch.randint(len(rows), (p.batch,)).numpy()])

    return update
