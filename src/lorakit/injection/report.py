"""What an injection did: every module it adapted, trained or left out, with counts."""

from collections import Counter
from dataclasses import dataclass

from lorakit.config import LoraConfig
from lorakit.errors import first_few

_COLUMNS = ("modules", "kind", "count", "in", "out", "r", "scaling", "parameters")


@dataclass(frozen=True)
class Match:
    """One adapted module."""

    path: str
    kind: str
    """Class of the base layer, such as "Linear"."""
    in_features: int
    out_features: int
    r: int
    scaling: float
    companion_parameters: int = 0
    """Parameters that variants add to the factors."""
    experts: int = 1
    """Number of matrices of that size stacked in one parameter."""
    slices: tuple[bool, ...] | None = None
    """Whether each slice of the outputs has a separate product of rank r; None for one product."""

    @property
    def parameters(self) -> int:
        """Parameters of the update: r (in + out) of each matrix, and those of variants.

        Each adapted slice has r (in + out / slices).
        """
        count, rows = self.experts, self.out_features
        if self.slices is not None:
            count, rows = sum(self.slices), rows // len(self.slices)
        return count * self.r * (self.in_features + rows) + self.companion_parameters


@dataclass(frozen=True)
class Injection:
    """The result of adding an adapter; `print(injection)` shows the table of what matched.

    Attributes:
        name: The adapter's name.
        config: Its configuration.
        matches: The adapted modules in the model's order.
        heads: Paths of the modules trained in full and saved with the adapter.
        biases: Names of the parameters trained because of `bias`.
        skipped: Modules left out, with the reason.
        factor_dtype: dtype of lora_A and lora_B.
        base_dtype: dtype of the adapted weights.
        tokens: Paths of the modules that share trained tokens, and their number, for each weight.
        lowered: Layers that allow only a lower rank, with that rank.
        notes: Decisions that were made by default, in sentences: the task inferred from the model's
            class, weights that the checkpoint lacks, tools that cannot read the adapter's file.
    """

    name: str
    config: LoraConfig
    matches: tuple[Match, ...]
    heads: tuple[str, ...]
    biases: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    factor_dtype: str
    base_dtype: str
    tokens: tuple[tuple[tuple[str, ...], int], ...] = ()
    lowered: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def lora_parameters(self) -> int:
        """Parameters of all low-rank updates."""
        return sum(match.parameters for match in self.matches)

    def rows(self) -> list[dict[str, str | int | float]]:
        """Return a table row for each kind of adapted module: last name, shape, rank and count."""
        groups: Counter[tuple[str, str, int, int, int, float, int]] = Counter()
        for m in self.matches:
            last = m.path.rpartition(".")[2]
            groups[last, m.kind, m.in_features, m.out_features, m.r, m.scaling, m.parameters] += 1
        return [
            dict(zip(_COLUMNS, (last, kind, count, *sizes, count * parameters), strict=True))
            for (last, kind, *sizes, parameters), count in groups.items()
        ]

    def table(self) -> str:
        """Return what matched as plain text, a line for each kind of module."""
        lines = [
            f"Adapter {self.name!r}: {len(self.matches)} modules adapted, "
            f"{self.lora_parameters:,} LoRA parameters ({self.factor_dtype} on {self.base_dtype})"
        ]
        cells = [_COLUMNS, *([_cell(value) for value in row.values()] for row in self.rows())]
        widths = [max(len(c) for c in column) for column in zip(*cells, strict=True)]
        for line in cells:
            aligned = [
                c.ljust(w) if position < 2 else c.rjust(w)
                for position, (c, w) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append("  " + "  ".join(aligned).rstrip())
        if self.heads:
            lines.append(f"Trained in full and saved: {', '.join(self.heads)}")
        if self.biases:
            lines.append(f"Trained biases: {len(self.biases)}")
        lines += [
            f"Trained tokens: {count} {'row' if count == 1 else 'rows'} of {' = '.join(paths)}"
            for paths, count in self.tokens
        ]
        ranks: dict[int, list[str]] = {}
        for path, rank in self.lowered:
            ranks.setdefault(rank, []).append(path)
        lines += [
            f"Rank {rank}, the largest that the layer allows: {first_few(paths)}"
            for rank, paths in ranks.items()
        ]
        reasons: dict[str, list[str]] = {}
        for path, reason in self.skipped:
            if path in self.heads:
                continue  # it is named above
            reasons.setdefault(reason, []).append(path)
        for reason, paths in reasons.items():
            lines.append(f"Left out, {reason}: {first_few(paths)}")
        lines += self.notes
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def _cell(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
