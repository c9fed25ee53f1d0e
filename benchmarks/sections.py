"""The parts of a machine's page, in order: what each is about, its table and its chart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from benchmarks import (
    charts,
    plan_tables,
    quality_tables,
    quantized_tables,
    serving_tables,
    tables,
)
from benchmarks.results import Row

Label = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Heading.
        about: What was measured; no numbers.
        benchmark: Whose rows it shows.
        table: Makes its tables.
        draw: Draws its chart, if it has one.
        image: First part of the chart's file name.
        split: Says which rows belong into one table and chart; None puts all into one.
    """

    title: str
    about: str
    benchmark: str
    table: Callable[[Sequence[Row]], str]
    draw: Callable[[Sequence[Row]], Figure] | None = None
    image: str = ""
    split: Callable[[Row], Label] | None = None


def _model(row: Row) -> Label:
    return tables.plain_shape(row.shape), row.dtype, f"r={row.r}"


def _model_of_any_rank(row: Row) -> Label:
    return tables.plain_shape(row.shape), row.dtype, f"dropout {row.dropout:g}"


def _dtype(row: Row) -> Label:
    return row.dtype, f"r={row.r}"


SECTIONS = (
    Section(
        "Time of a training step",
        "Forward and backward of a model whose linear layers all carry an update, and the same "
        "with a step of fused AdamW.",
        "step",
        tables.step_table,
        charts.step_chart,
        "step",
    ),
    Section(
        "Memory of a training step",
        "Bytes that autograd keeps between forward and backward, each storage once; how far memory "
        "rises during forward, backward and the optimizer's step (on a CPU, without buffers that a "
        "library takes from the system itself); and that peak with weights and optimizer state.",
        "step",
        tables.bytes_table,
        charts.bytes_chart,
        "memory",
    ),
    Section(
        "A step on a quantized base",
        "Forward and backward with an update on every linear layer. The dense base, and that of "
        "the limit, hold the dequantized weights; all compute in the dtype of the heading. PEFT "
        "runs on bitsandbytes' layers. Bits per parameter are those of the quantized layers' "
        "storages, scales and code books included.",
        "qlora",
        quantized_tables.qlora_table,
    ),
    Section(
        "A magnitude (DoRA)",
        "A training step with an update on every linear layer, and the same with a magnitude in "
        "each of them, against plain LoRA with the same dropout.",
        "dora",
        tables.dropout_table,
    ),
    Section(
        "Preferences",
        "A training step of DPO, prompts half of each sequence: lorakit with the reference's "
        "log-probabilities known, as in a run of several epochs, and computed in each step, as "
        "TRL's DPOTrainer does with a PeftModel; peaks as for a training step.",
        "preferences",
        tables.dropout_table,
    ),
    Section(
        "The frozen part once",
        "A training step that adapts all layers, the upper half and the upper quarter; the layers "
        "below are computed, or their output is read from disk as in every epoch but the first; "
        "and whole epochs of runs.",
        "frozen_part",
        tables.dropout_table,
    ),
    Section(
        "Predicting a file",
        "Classes for files of texts, against transformers' pipeline on the same model at its best "
        "batch size, and new texts for files of prompts, against one prompt at a time. Every round "
        "has other texts: the seconds of classes are those of a seventh of them, those of new "
        "texts for as many prompts as it says. Reading and writing the file are in lorakit's time.",
        "predict",
        tables.dropout_table,
    ),
    Section(
        "Many runs at once",
        "A step of several runs on one base, their batches computed in one pass and one after "
        "another; the peak of memory of whole runs, in one process and in one for each.",
        "together",
        tables.settings_table,
    ),
    Section(
        "A search and a study in four ways",
        "A search of eight trials that adapts the upper half, and a study with three depths, of "
        "the quickstart's task: each trial in a separate process, two together in each of two, "
        "with the frozen part kept, and both; time and memory of all processes, Ray's included.",
        "searches",
        tables.settings_table,
    ),
    Section(
        "Other kinds of layers",
        "One layer alone, forward and backward, its input's gradient included. For the fused "
        "matrix the updates are those of two parts of three, and of the whole matrix.",
        "layer_kinds",
        tables.dropout_table,
    ),
    Section(
        "A busy machine",
        "A training step while nothing else runs, and while two more processes compute all the "
        "time, by how threads wait for each other; the ratio is to threads that wait in a loop, "
        "OpenMP's default. The command line lets them wait in a short loop, then asleep.",
        "busy_machine",
        tables.busy_table,
    ),
    Section(
        "Memory while loading",
        "Peak of resident memory of a process that loads a checkpoint of random weights, the "
        "libraries it imports included.",
        "loading",
        quantized_tables.loading_table,
    ),
    Section(
        "Large data",
        "Seconds from the command to the first step on files of short examples, planning included, "
        "with the quickstart's model; and the largest sum of the proportional share of memory "
        "(PSS) of all processes, the libraries they import included. The second run finds what "
        "the first one has kept. One run each.",
        "data_at_scale",
        quantized_tables.data_table,
    ),
    Section(
        "Memory of a search",
        "Largest sum of the proportional share of memory (PSS) of all processes that run trials, "
        "the libraries they import included. The bound is one base, and four times what a single "
        "trial's process has beside its base: libraries, adapter, optimizer and activations.",
        "search_memory",
        quantized_tables.search_table,
    ),
    Section(
        "The memory plan",
        "A step planned on fake tensors, and the same step of the same trainer on the same batch, "
        "its storages counted on real ones. Saved is what forward leaves for backward; the peak is "
        "that of all tensors. Resident is how far the process rises above what it takes with its "
        "libraries alone; it includes what torch's libraries and the allocator keep.",
        "memory_plan",
        plan_tables.plan_table,
    ),
    Section(
        "Equal quality",
        "The quickstart's model, trained with its recipe in each way with each seed: the mean over "
        "the seeds, the standard deviation, and each seed's value after the last epoch. Accuracy "
        "lost is the median of the differences of the same seed, in percentage points; the "
        "standard error of one accuracy of the 480 held-out examples is 1.8. Processor time is "
        "that of all threads.",
        "same_quality",
        quality_tables.quality_table,
    ),
    Section(
        "Latency of forward",
        "The batch sizes of table 1 of [Hu et al. 2021](https://arxiv.org/abs/2106.09685), logits "
        "of the last position only. A number after the colon of a model's name is the number of "
        "its blocks.",
        "latency",
        tables.latency_table,
    ),
    Section(
        "Adding, loading and switching adapters",
        "Adapters of one size, loaded one after the other into one model from files that the "
        "system's cache holds. A late adapter is compared with the same library's second.",
        "switching",
        tables.injection_table,
        charts.loading_chart,
        "loading",
        _model,
    ),
    Section(
        "Decoding with an adapter for each row",
        "Tokens per second of a whole batch, one token at a time after a prompt, against the base "
        "model without adapters on the same batch.",
        "rows",
        tables.decode_table,
        charts.decode_chart,
        "decoding",
        _model,
    ),
    Section(
        "Decoding on a base in 4 bits",
        "Tokens per second of a whole batch, one token at a time after a prompt, with an adapter "
        "that is not merged. The dense base holds the dequantized weights in the dtype of the "
        "heading. The products of the 4-bit base are computed with a buffer of dequantized values, "
        "and with the codes as they are stored. `ops/quantized.py` uses the codes up to the number "
        "of tokens at which this stops being faster.",
        "decode_4bit",
        quantized_tables.decode_4bit_table,
    ),
    Section(
        "A server",
        "The engine of `lorakit serve` in one process. A decode step is one in which all rows are "
        "decoding. Mixed lengths are requests that are there at once: the engine, `generate` in "
        "padded batches in the order of arrival, and, with the first of the requests alone, "
        "transformers' continuous batching without adapters and PEFT one request at a time. In a "
        "closed loop a fixed number of requests is under way; in an open loop they arrive at "
        "random moments (Poisson). Percentiles are over all requests, or all tokens, of one run. A "
        "load is that of an adapter while answers are decoded, in steps by which they end later.",
        "serving",
        serving_tables.serving_table,
    ),
    Section(
        "Growth",
        "Forward and backward, and bytes saved between them, as one size grows; ratios are to the "
        "frozen limit.",
        "growth",
        tables.growth_table,
        charts.growth_chart,
        "growth",
        _model_of_any_rank,
    ),
    Section(
        "Bracketing",
        "One layer, computed as x W0ᵀ + s (x Aᵀ) Bᵀ (factored) and as x (W0 + s B A)ᵀ with the sum "
        "formed in each step (formed). Counting products, the two meet at in·out / (in + out) "
        "tokens whatever the rank "
        "([Cherniuk et al. 2023](https://arxiv.org/abs/2312.03415)).",
        "bracketing",
        tables.bracketing_table,
        charts.bracketing_chart,
        "bracketing",
        _dtype,
    ),
    Section(
        "Thin products",
        "The products of the low-rank path in C against torch's, 1024 tokens; below 1 the C "
        "code is faster. `ops/skinny.py` uses it up to the rank at which it stops being faster.",
        "thin_products",
        quantized_tables.thin_table,
    ),
    Section(
        "The loss of an output layer",
        "Forward and backward of an output layer that is not trained and its loss, to the gradient "
        "of the hidden states, in chunks of 256 tokens and with all logits at once. With the loss "
        "in torch, lorakit computes the same products, and torch's operations compute losses and "
        "their gradient in one buffer. In float32 *torch in chunks* is its "
        "`linear_cross_entropy`, which takes torch's products; in bfloat16 that would convert the "
        "whole weight on a CPU, so `cross_entropy` runs on each chunk. The peak is without buffers "
        "that a library takes from the system itself.",
        "output_loss",
        quantized_tables.output_loss_table,
    ),
    Section(
        "Ways of dropping",
        "Dropout of an activation, alone and in front of the projection to the rank.",
        "dropout_ways",
        tables.dropout_table,
    ),
)
