"""Whether adapters of two ranks find the same directions, and what they amplify: C9.

The adapters are those that `quality` has trained on every linear layer. Taken are the query and
value of every layer, as the paper takes them of one. Two ranks are compared over different seeds,
so that they do not begin with the same random numbers.
"""

from itertools import product
from typing import Any

from benchmarks.claims.quality import adapters_folder
from benchmarks.claims.quality_runs import LORA, QualityRun, read_runs
from benchmarks.claims.records import claim_row
from benchmarks.options import Options
from benchmarks.results import Row
from lorakit import Adapter
from lorakit.analysis import AdapterAnalysis, analyze_adapter, compare_adapters
from lorakit.inference.base_weights import load_base_weights

SMALL, LARGE = 8, 64
AMPLIFIED = (4, 8, 64)
MODULES = ("q_proj", "v_proj")
TOP_A = "φ of the top directions of A, r=8 and r=64"
TOP_UPDATE = "φ of the top directions of ΔW, r=8 and r=64"
TOP_CHANCE = "φ of one random direction each"
INSIDE = "φ of the top direction of ΔW at r=8 in all 64 of r=64"
INSIDE_CHANCE = "φ of a random direction in 64 random ones"


def amplification_name(r: int) -> str:
    """Return what the amplification factor of a rank is called."""
    return f"amplification factor, r={r}"


def compare(options: Options) -> list[Row]:
    """Compare the adapters that are kept; those that are not there are named."""
    found = _analyses(options)
    rows = _similarities(options, found) + _amplifications(options, found)
    if not rows:
        print("  no adapters are kept here: delete their rows and run `quality` again", flush=True)
    return options.keep(rows)


def _analyses(options: Options) -> dict[tuple[int, int], AdapterAnalysis]:
    """Return the kept adapters by rank and seed."""
    found: dict[tuple[int, int], AdapterAnalysis] = {}
    for run in _analysed_runs(options):
        path = adapters_folder(options) / run.wanted.name
        if path.exists():
            adapter = Adapter.load(path)
            weights = load_base_weights(path)
            key = run.wanted.r, run.wanted.seed
            found[key] = analyze_adapter(adapter, weights, name=run.wanted.name)
        else:
            print(f"  without {run.wanted.name}: its adapter is not kept here", flush=True)
    return found


def _analysed_runs(options: Options) -> list[QualityRun]:
    """Return the runs on every linear layer at the learning rate that other seeds have too."""
    runs = [
        run
        for run in read_runs(options.output)
        if run.wanted.method == LORA and run.wanted.targets == "all-linear"
    ]
    rates = [run.wanted.learning_rate for run in runs]
    usual = max(set(rates), key=rates.count, default=0.0)
    return [run for run in runs if run.wanted.r in AMPLIFIED and run.wanted.learning_rate == usual]


def _similarities(options: Options, found: dict[tuple[int, int], AdapterAnalysis]) -> list[Row]:
    pairs = [
        (found[small], found[large])
        for small, large in product(found, found)
        if small[0] == SMALL and large[0] == LARGE and small[1] != large[1]
    ]
    values: dict[str, list[float]] = {}
    for first, second in pairs:
        for module in compare_adapters(first, second).modules:
            if not _is_taken(module.path):
                continue
            for name, matrix, place in (
                (TOP_A, module.factor_A, (0, 0)),
                (TOP_UPDATE, module.inputs, (0, 0)),
                (TOP_CHANCE, module.expected_inputs, (0, 0)),
                (INSIDE, module.inputs, (0, -1)),
                (INSIDE_CHANCE, module.expected_inputs, (0, -1)),
            ):
                values.setdefault(name, []).append(matrix[place].item())
    return [_row(options, name, group, len(pairs), SMALL) for name, group in values.items()]


def _amplifications(options: Options, found: dict[tuple[int, int], AdapterAnalysis]) -> list[Row]:
    rows = []
    for r in AMPLIFIED:
        group = [analysis for (rank, _), analysis in found.items() if rank == r]
        factors = [a.factor for one in group for a in one.amplifications if _is_taken(a.path)]
        if factors:
            rows.append(_row(options, amplification_name(r), factors, len(group), r))
    return rows


def _is_taken(path: str) -> bool:
    return path.rpartition(".")[2] in MODULES


def _row(options: Options, name: str, values: list[float], count: int, r: int) -> Row:
    common: dict[str, Any] = {"shape": "quickstart base", "r": r}
    many = "adapters" if name.startswith("amplification") else "pairs of adapters"
    setting = f"q_proj, v_proj of 5 layers, {count} {many}"
    return claim_row(options, "C9", name, values, "", setting=setting, **common)
