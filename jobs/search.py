"""The searches of a sweep with Ray Tune: Optuna's TPE with ASHA, a population, and the final comparison; each resumes."""

import logging
import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.spaces import Space, as_tune_domain, changed_in_flight, clip
from jobs.sweep_progress import MarkEnded
from jobs.trial import Segment, SweepPlan, forget_claims, run_member, run_trial, run_variant
from pipeline.config import RunConfig, flatten

DRIVER_CPUS = 0.01
"""Of a trial's driver, which only waits; at 0 Tune refuses it."""
_log = logging.getLogger(__name__)


class Interrupted(RuntimeError):
    """A search that was stopped before its end; the same command goes on."""


def tpe_search(
    plan: SweepPlan,
    space: Space,
    objectives: Mapping[str, str],
    num_trials: int,
    concurrent: int,
    seed: int,
    asha: bool,
) -> set[str]:
    """Run Optuna's TPE over `space`, the recipe's own values first; with ASHA, trials that lag behind are cut.

    Args:
        plan: what all trials share.
        space: distributions by dotted key; each holds the recipe's value.
        objectives: metric -> "min" or "max"; several make the search multi-objective, which ASHA does not know.
        num_trials: in all.
        concurrent: at a time.
        seed: of the sampler.
        asha: cut trials.

    Returns:
        Tune's ids of the trials.

    Raises:
        Interrupted: by a signal.
    """
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = RunConfig.from_dict(plan.config)
    own = own_values(config, space)
    metrics, modes = list(objectives), list(objectives.values())
    single = len(metrics) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=min(10, max(3, num_trials // 3)), constant_liar=True
        )
    searcher = OptunaSearch(
        dict(space),
        metric=metrics[0] if single else metrics,
        mode=modes[0] if single else modes,
        points_to_evaluate=[own],
        sampler=sampler,
    )
    scheduler = None
    if asha and single:
        total, every = plan.total(config), config.evaluation.every_updates
        scheduler = tune.schedulers.ASHAScheduler(
            time_attr="step", max_t=total, grace_period=first_rung(total, every), reduction_factor=2
        )
    tune_config = tune.TuneConfig(
        metric=metrics[0] if single else None,
        mode=modes[0] if single else None,
        search_alg=searcher,
        scheduler=scheduler,
        num_samples=num_trials,
        max_concurrent_trials=concurrent,
        trial_dirname_creator=_dirname,
    )
    return _fit(plan, "search", tune.with_parameters(run_trial, plan=plan), tune_config, num_trials)


def population_search(
    plan: SweepPlan, space: Space, metric: str, num_trials: int, seed: int, interval: int
) -> set[str]:
    """Run population based training: after every `interval` updates the worst members go on from copies of the best, with
    gamma, learning rates and beta_std perturbed. The recipe's own values are the first member; other searched keys are
    drawn once. All members are there at once; those without a free worker wait.

    Returns:
        Tune's ids of the trials.

    Raises:
        Interrupted: by a signal.
    """
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    random.seed(seed)  # PopulationBasedTraining takes no seed: it draws from these two
    np.random.seed(seed)
    config = RunConfig.from_dict(plan.config)
    flight = changed_in_flight(config, space)

    def keep_inside(settings: dict[str, Any]) -> dict[str, Any]:
        return {key: clip(value, flight[key]) if key in flight else value for key, value in settings.items()}

    domains = {key: as_tune_domain(distribution) for key, distribution in space.items()}
    scheduler = tune.schedulers.PopulationBasedTraining(
        time_attr="step",
        perturbation_interval=interval,
        hyperparam_mutations={key: domains[key] for key in flight},
        custom_explore_fn=keep_inside,
        quantile_fraction=0.25,
        synch=True,  # who is best does not depend on who is fast
        log_config=False,
    )
    tune_config = tune.TuneConfig(
        metric=metric,
        mode="min",
        search_alg=BasicVariantGenerator(points_to_evaluate=[own_values(config, space)], random_state=seed),
        scheduler=scheduler,
        num_samples=num_trials,
        trial_dirname_creator=_dirname,
    )
    trainable = tune.with_parameters(run_member, plan=plan, interval=interval)
    # without it the last report would be perturbed, too, and no update be made with what came of it
    return _fit(plan, "search", trainable, tune_config, num_trials, domains, stop={"step": plan.total(config)})


def final_runs(
    plan: SweepPlan, variants: Mapping[str, Sequence[Segment]], seeds: Sequence[int], concurrent: int
) -> set[str]:
    """Train each variant in full with each seed; what is trained already is not trained again.

    Returns:
        Tune's ids of the trials.

    Raises:
        Interrupted: by a signal.
    """
    from ray import tune

    values = {name: [segment._asdict() for segment in lineage] for name, lineage in variants.items()}
    tune_config = tune.TuneConfig(
        metric="step",
        mode="max",
        num_samples=1,
        max_concurrent_trials=concurrent,
        trial_dirname_creator=_dirname,
    )
    grid = {"seed": tune.grid_search(list(seeds)), "variant": tune.grid_search(list(values))}
    trainable = tune.with_parameters(run_variant, plan=plan, variants=values)
    return _fit(plan, "final", trainable, tune_config, len(seeds) * len(values), grid)


def first_rung(total: int, every: int) -> int:
    """Updates before ASHA's first cut: the first held-out evaluation at or after a quarter of the run."""
    return min(total, -(-max(total // 4, 1) // every) * every)


def own_values(config: RunConfig, space: Space) -> dict[str, Any]:
    """The recipe's values of the searched keys."""
    known = flatten(config.to_dict())
    return {key: known[key] for key in space}


def _dirname(trial: Any) -> str:
    """No settings in the names of Tune's folders."""
    return trial.trial_id


def _fit(
    plan: SweepPlan,
    name: str,
    trainable: Callable[..., None],
    tune_config: Any,
    num_trials: int,
    param_space: dict[str, Any] | None = None,
    stop: dict[str, int] | None = None,
) -> set[str]:
    """Run the search, or go on with one that was interrupted: finished trials are not run again. Returns their ids."""
    from ray import tune

    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "2"  # a kill costs at most so much of what the search knows
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    storage = Path(plan.folder) / "tune"
    light = tune.with_resources(trainable, {"cpu": DRIVER_CPUS})
    if tune.Tuner.can_restore(str(storage / name)):
        _log.info("going on with the %s in %s", name, plan.folder)
        tuner = tune.Tuner.restore(str(storage / name), trainable=light, resume_unfinished=True)
    else:
        run_config = tune.RunConfig(
            name=name,
            storage_path=str(storage),
            verbose=0,
            stop=stop,
            callbacks=[MarkEnded(plan)],
            failure_config=tune.FailureConfig(max_failures=2),
        )
        tuner = tune.Tuner(light, param_space=param_space or {}, tune_config=tune_config, run_config=run_config)
    forget_claims(plan)
    trials = tuner.fit()._experiment_analysis.trials
    # after Ctrl-C Tune calls all trials terminated; which have ended is what its callbacks noted
    known = {trial.trial_id for trial in trials}
    over = {trial for trial in known if (plan.notes / f"{trial}.ended").exists()}
    if len(over) < num_trials:
        raise Interrupted(f"{num_trials - len(over)} of {num_trials} trials of the {name} are not at their end")
    return known
