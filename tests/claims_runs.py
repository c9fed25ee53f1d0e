"""Quality runs with made-up accuracies: the whole grid of the claims."""

from benchmarks.claims.quality_runs import FULL, LORA, Grid, QualityRun, Wanted

from invented_rows import ORIGIN

RATES = {LORA: 2e-3, FULL: 1e-3}


def invented_run(wanted: Wanted, accuracy: float) -> QualityRun:
    """Return a run of 480 held-out rows."""
    factors = 22_400 * wanted.r
    return QualityRun(
        wanted=wanted,
        model="quickstart base",
        data="docstrings, ten packages",
        trained_parameters=factors + 2_560 if wanted.method == LORA else 4_494_592,
        factor_parameters=factors,
        accuracy_before=0.1,
        accuracy=accuracy,
        held_out_rows=480,
        wall_s=42.0,
        saved_bytes=4 * factors,
        origin=ORIGIN,
    )


def invented_runs() -> list[QualityRun]:
    """Return the grid: full 0.80, rank r 0.75 + r / 1600, seeds a hundredth apart."""
    grid = Grid()
    wanted = [*grid.searches(FULL), *grid.searches(LORA)]
    for seed in grid.seeds:
        wanted += grid.of_seed(RATES, seed)
    runs = []
    for one in dict.fromkeys(wanted):
        accuracy = 0.80 if one.method == FULL else 0.75 + one.r / 1600
        accuracy -= 0.05 * (one.learning_rate != RATES[one.method])
        runs.append(invented_run(one, accuracy + 0.01 * (one.seed - 2)))
    return runs
