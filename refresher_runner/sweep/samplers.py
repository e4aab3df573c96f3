"""Who proposes the next trial, and who gives up on one.

All are Optuna's but for CMA-ES, which Optuna keeps on disk as a pickle, and that can hold any code. A proposal is a function of the
search's seed, of the trial's number and of the trials on disk, so a search that goes on proposes what it would have proposed unbroken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refresher_runner.engine.options import SweepOptions
from refresher_runner.errors import ConfigError
from refresher_runner.sweep.leaderboard import Objective
from refresher_runner.sweep.space import Choice, Interval, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

GENERATION = "generation"  # of CMA-ES, in which a trial was proposed


def refuse(space: Space, options: SweepOptions, objectives: Sequence[Objective]) -> None:
    """Raises ConfigError for a search that cannot be."""
    intervals = [key for key, parameter in space.parameters.items() if isinstance(parameter, Interval) and parameter.step is None]
    choices = [key for key, parameter in space.parameters.items() if isinstance(parameter, Choice)]
    if options.search == "grid" and intervals:
        raise ConfigError("an interval has no end of points", key=intervals[0], cure="sweep=tpe, or range(low,high,step) for a grid")
    if options.search == "grid" and options.trials is not None:
        raise ConfigError("a grid has as many as it has points", key="sweep.trials", value=options.trials, cure="use sweep=random")
    if options.search != "grid" and options.trials is None:
        raise ConfigError("a search needs an end", key="sweep.trials", value="null", cure="sweep.trials=20")
    if options.search == "cmaes" and choices:
        raise ConfigError("CMA-ES moves in numbers, and these are words", key=choices[0], cure="sweep=tpe, or an interval")
    if options.search == "cmaes" and len(space.parameters) < 2:
        raise ConfigError("CMA-ES learns how keys go together, and this is one", key=next(iter(space.parameters)), cure="sweep=tpe")
    if len(objectives) > 1 and options.prune:
        raise ConfigError(
            "of several objectives none says who is hopeless", key="sweep.prune", value=options.prune, cure="sweep.prune=null"
        )
    if len(objectives) > 1 and options.search == "cmaes":
        raise ConfigError(
            "CMA-ES has one objective", key="sweep.objectives", value=list(options.objectives), cure="sweep=nsga2, or sweep=tpe"
        )


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna knows it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for key, parameter in space.parameters.items():
        if isinstance(parameter, Choice):
            found[key] = CategoricalDistribution(parameter.values)
        elif parameter.whole:
            found[key] = IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=int(parameter.step or 1))
        else:
            found[key] = FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return found


def sampler(options: SweepOptions, number: int) -> BaseSampler:
    """Who proposes trial `number`."""
    import optuna.samplers as those

    seed = options.seed + number
    if options.search == "tpe":
        return those.TPESampler(seed=seed, n_startup_trials=options.startup)  # a trial that still runs is taken for a bad one meanwhile
    if options.search == "nsga2":
        return those.NSGAIISampler(seed=seed, population_size=max(2, options.startup))
    return those.RandomSampler(seed=seed)


def pruner(options: SweepOptions) -> BasePruner:
    """Median: worse than half of the finished trials at the same evaluation (Golovin et al. 2017). Halving: not among the best third of
    those that came as far, asked after `grace`, 3 `grace`, 9 `grace` ... evaluations (ASHA: Li et al. 2020).
    """
    import optuna.pruners as those

    if options.prune == "median":
        return those.MedianPruner(n_startup_trials=options.startup, n_warmup_steps=options.grace)
    if options.prune == "halving":
        return those.SuccessiveHalvingPruner(min_resource=options.grace, reduction_factor=3)
    return those.NopPruner()


def evolved(options: SweepOptions, space: Space, mode: str, trials: Sequence[FrozenTrial]) -> tuple[dict[str, Any], int]:
    """What CMA-ES (Hansen 2016) tries next, and in which generation: from its state after those generations whose trials have finished."""
    import numpy as np
    from cmaes import CMA
    from optuna.trial import TrialState

    intervals = {key: parameter for key, parameter in space.parameters.items() if isinstance(parameter, Interval)}
    middle, cube = np.full(len(intervals), 0.5), np.array([[0.0, 1.0]] * len(intervals))
    search = CMA(mean=middle, sigma=1 / 6, bounds=cube, seed=options.seed + len(trials))
    generation = 0
    while True:
        done = [t for t in trials if t.user_attrs.get(GENERATION) == generation and t.state == TrialState.COMPLETE][
            : search.population_size
        ]
        if len(done) < search.population_size:
            break
        sign = 1 if mode == "min" else -1
        search.tell([(np.array([i.to_unit(t.params[key]) for key, i in intervals.items()]), sign * (t.value or 0.0)) for t in done])
        generation += 1
    return {key: interval.from_unit(float(x)) for (key, interval), x in zip(intervals.items(), search.ask(), strict=True)}, generation
