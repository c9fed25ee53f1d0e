"""Figures of several servers as one text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families


def merged_text(texts: Mapping[str, bytes]) -> bytes:
    """Return the figures of several servers as one text, each with a label `replica`.

    Args:
        texts: What `Metrics.text` returned, by name of the server.
    """
    families: dict[str, Metric] = {}
    for server, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            kept = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                kept.add_sample(sample.name, {"replica": server, **sample.labels}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Collected(list(families.values())))  # type: ignore[arg-type]
    return generate_latest(registry)


class _Collected:
    """Figures that have been collected already."""

    def __init__(self, families: list[Metric]):
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
