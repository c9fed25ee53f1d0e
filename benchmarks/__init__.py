"""What lorakit's speed and memory are, against the frozen limit, full fine-tuning and its peers.

Run one with `python -m benchmarks.<name>` from the repository's root, all with `make bench`. Rows
are appended to `benchmarks/results/*.csv`; `python -m benchmarks.page` writes
`docs/performance.md` from them.
"""

import os

BENCHMARKS = (
    *("step", "qlora", "growth", "latency", "rows", "switching", "bracketing", "dropout_ways"),
    *("thin_products", "output_loss", "decode_4bit"),
    "dora",
    "preferences",
    "frozen_part",
    "predict",
    "together",
    "searches",
    "layer_kinds",
    "busy_machine",
    "loading",
    "data_at_scale",
    "search_memory",
    "memory_plan",
    "same_quality",
    "serving",
)
"""The modules that measure, in the order they are run in."""

# The profiler that records allocations would print its start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
# Models are made on the spot, so nothing is asked of the hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
