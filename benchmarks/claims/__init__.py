"""What the papers claim of LoRA and QLoRA, measured or computed again.

`python -m benchmarks.claims` runs every section and writes `docs/claims.md`;
`python -m benchmarks.claims counts quality` runs two of them, `--page` writes the page alone.
Figures go to `benchmarks/results/claims.csv`, trained models' accuracies to `claims_quality.csv`.
"""

SECTIONS = ("counts", "arithmetic", "plans", "quality", "directions")
"""What can be run, in this order."""

BENCHMARK = "claims"
"""What the rows are called, and their CSV file."""
