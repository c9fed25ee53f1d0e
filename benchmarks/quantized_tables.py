"""The tables of docs/performance.md about quantized bases, searches and single operations."""

from collections.abc import Sequence

from benchmarks import (
    data_at_scale,
    decode_4bit,
    loading,
    output_loss,
    qlora,
    search_memory,
    thin_products,
)
from benchmarks.options import quantity_text
from benchmarks.results import Row, matching, newest
from benchmarks.step import FORWARD_BACKWARD, PEAK, SAVED
from benchmarks.tables import columns, grouped, median_of, ratio_of, ratio_text, table
from benchmarks.variants import LIMIT, LORAKIT

_VARIANTS = (
    LIMIT,
    qlora.DENSE,
    *(qlora.quantized_name(who, bits) for bits in (4, 8) for who in (LORAKIT, "peft")),
)


def qlora_table(device_rows: Sequence[Row]) -> str:
    """Return the time and the bytes of a step for each model and column."""
    parts = []
    for label, group in columns(device_rows):
        lines = []
        for variant in _VARIANTS:
            step = {"measure": FORWARD_BACKWARD, "variant": variant}
            saved = {"measure": SAVED, "variant": variant}
            peer = qlora.quantized_name("peft", 8 if variant.endswith("8 bits") else 4)
            lines.append(
                (
                    variant,
                    median_of(group, **step),
                    *(ratio_of(group, ratio_to=to, **step) for to in (LIMIT, qlora.DENSE, peer)),
                    median_of(group, **saved),
                    ratio_of(group, ratio_to=qlora.DENSE, **saved),
                    ratio_of(group, ratio_to=peer, **saved),
                    median_of(group, measure=PEAK, variant=variant),
                    median_of(group, measure=qlora.WEIGHTS, variant=variant),
                )
            )
        header = ("", "step", "/ limit", "/ dense base", "/ peft", "saved", "/ dense base")
        header += ("/ peft", "peak of a step", "per parameter")
        parts += [f"**{label}**", table(header, lines)]
    return "\n\n".join(parts)


def loading_table(device_rows: Sequence[Row]) -> str:
    """Return the peak of resident memory for each way of loading."""
    parts = []
    for (shape, setting), group in grouped(device_rows, lambda row: (row.shape, row.setting)):
        shard = newest(group, measure=loading.SHARD)
        lines = []
        for variant in dict.fromkeys(
            row.variant for row in matching(group, measure=loading.LOADED)
        ):
            bare, peak, model = (
                newest(group, measure=measure, variant=variant)
                for measure in (loading.BARE, loading.PEAK_RESIDENT, loading.LOADED)
            )
            if bare is None or peak is None or model is None or shard is None:
                continue
            above = peak.p50 - model.p50 - shard.p50
            cells = (bare.p50, model.p50, peak.p50, above)
            lines.append((variant, *(quantity_text(cell, "B") for cell in cells)))
        if lines and shard is not None:
            largest = quantity_text(shard.p50, "B")
            header = ("", "libraries alone", "model", "peak", "peak - model - shard")
            parts += [f"**{shape}, {setting}, the largest {largest}**", table(header, lines)]
    return "\n\n".join(parts)


def data_table(device_rows: Sequence[Row]) -> str:
    """Return the seconds to the first step on large data, and the memory."""
    lines = []
    for setting, group in grouped(device_rows, lambda row: row.setting):
        for variant in (data_at_scale.FIRST, data_at_scale.AGAIN, data_at_scale.STREAMED):
            cells = [
                median_of(group, measure=measure, variant=variant)
                for measure in data_at_scale.MEASURES
            ]
            if any(cells):
                lines.append((setting, variant, *cells))
    header = ("", "", "to the first step", "of all processors", "peak memory")
    return table(header, lines) if lines else ""


def search_table(device_rows: Sequence[Row]) -> str:
    """Return the memory of one trial, of several at once, and the bound for these."""
    parts = []
    for shape, group in grouped(device_rows, lambda row: row.shape):
        base = newest(group, measure=search_memory.BASE_BYTES)
        lines = []
        for variant in (search_memory.ALONE, search_memory.AT_ONCE, search_memory.BOUND):
            where = {"measure": search_memory.PEAK_SHARED, "variant": variant}
            ratio = ratio_of(group, ratio_to=search_memory.BOUND, **where)
            lines.append((variant, median_of(group, **where), ratio))
        size = "" if base is None else f", a base of {quantity_text(base.p50, 'B')}"
        parts += [f"**{shape}, float32{size}**", table(("", "peak", "/ bound"), lines)]
    return "\n\n".join(parts)


def thin_table(device_rows: Sequence[Row]) -> str:
    """Return the time of the C over that of torch for each product, layer and rank."""
    parts = []
    for (dtype, dropout), group in grouped(device_rows, lambda row: (row.dtype, row.dropout)):
        ranks = sorted({row.r for row in group})
        lines = []
        for (measure, shape), rows in grouped(group, lambda row: (row.measure, row.shape)):
            wanted = {"variant": thin_products.IN_C, "ratio_to": thin_products.IN_TORCH}
            cells = [ratio_text(newest(rows, r=r, **wanted)) for r in ranks]
            lines.append((measure, shape, *cells))
        header = ("product", "layer", *(f"r={r}" for r in ranks))
        parts += [f"**{dtype}, dropout {dropout:g}, C / torch**", table(header, sorted(lines))]
    return "\n\n".join(parts)


def output_loss_table(device_rows: Sequence[Row]) -> str:
    """Return time and peak of each way, and its ratios, for each layer and number of tokens."""
    parts = []
    references = (output_loss.IN_CHUNKS, output_loss.LOSS_IN_TORCH)
    for (shape, setting, dtype), group in grouped(
        device_rows, lambda row: (row.shape, row.setting, row.dtype)
    ):
        lines = []
        for variant in output_loss.VARIANTS:
            cells: list[str] = []
            for measure in (FORWARD_BACKWARD, PEAK):
                where = {"measure": measure, "variant": variant}
                cells.append(median_of(group, **where))
                cells += [ratio_of(group, ratio_to=to, **where) for to in references]
            lines.append((variant, *cells))
        ratios = ("/ torch in chunks", "/ loss in torch")
        header = ("", "forward+backward", *ratios, "peak", *ratios)
        parts += [f"**{shape}, {setting}, {dtype}**", table(header, lines)]
    return "\n\n".join(parts)


def decode_4bit_table(device_rows: Sequence[Row]) -> str:
    """Return tokens per second on a dense base and on one in 4 bits, for each number of rows."""
    parts = []
    for (shape, dtype), group in grouped(device_rows, lambda row: (row.shape, row.dtype)):
        lines = []
        for setting, rows in grouped(group, lambda row: (row.setting,)):
            by_codes = {"variant": decode_4bit.CODES}
            lines.append(
                (
                    *setting,
                    *(
                        median_of(rows, variant=variant)
                        for variant in (decode_4bit.DENSE, decode_4bit.BUFFER, decode_4bit.CODES)
                    ),
                    ratio_of(rows, ratio_to=decode_4bit.DENSE, **by_codes),
                    ratio_of(rows, ratio_to=decode_4bit.BUFFER, **by_codes),
                )
            )
        header = ("batch", decode_4bit.DENSE, decode_4bit.BUFFER, decode_4bit.CODES)
        header += ("codes / dense base", "codes / dense buffer")
        parts += [f"**{shape}, {dtype}**", table(header, lines)]
    return "\n\n".join(parts)
