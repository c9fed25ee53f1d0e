"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lorakit.serving.engine import EngineHooks

if TYPE_CHECKING:
    from lorakit.serving.service import Service

UNKNOWN = "unknown"
"""Label of requests whose model does not exist, so that clients cannot add labels."""

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All figures of a server; each server has its own registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "lorakit_requests",
            "Requests that ended, by model, path and status.",
            ("model", "path", "status"),
            registry=self._registry,
        )
        self._tokens = Counter(
            "lorakit_tokens",
            "Tokens of prompts (input) and answers (output).",
            ("model", "direction"),
            registry=self._registry,
        )
        self._duration = Histogram(
            "lorakit_request_seconds",
            "Time of a request from its arrival to its end.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first_token = Histogram(
            "lorakit_first_token_seconds",
            "Time from a request in the engine's queue to its first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._next_token = Histogram(
            "lorakit_next_token_seconds",
            "Time between two tokens of an answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._step_rows = Histogram(
            "lorakit_step_rows",
            "Answers that one step of decoding continues.",
            buckets=_ROWS,
            registry=self._registry,
        )

    @property
    def hooks(self) -> EngineHooks:
        """What an engine calls."""
        return EngineHooks(
            first_token=lambda adapter, s: self._first_token.observe(s),
            next_token=lambda adapter, s: self._next_token.observe(s),
            step=lambda rows, s: self._step_rows.observe(rows),
        )

    def watch(self, service: Service) -> None:
        """Report the state of a service too."""
        self._registry.register(_State(service))

    def count(
        self,
        model: str | None,
        path: str,
        status: int,
        duration_s: float,
        input_tokens: int,
        output_tokens: int,
    ) -> None:
        """Count a request that has ended.

        Args:
            model: The model, None if it does not exist or the request names none.
            path: Path of the call.
            status: HTTP status.
            duration_s: Seconds that it took.
            input_tokens: Tokens of its prompts.
            output_tokens: Tokens of its answers.
        """
        model = model or UNKNOWN
        self._requests.labels(model, path, str(status)).inc()
        self._duration.labels(path).observe(duration_s)
        if input_tokens:
            self._tokens.labels(model, "input").inc(input_tokens)
        if output_tokens:
            self._tokens.labels(model, "output").inc(output_tokens)

    def text(self) -> bytes:
        """Return all figures in Prometheus' format."""
        return generate_latest(self._registry)


class _State:
    """Reads what models and stores report of themselves when Prometheus asks."""

    def __init__(self, service: Service):
        self._service = service

    def collect(self) -> Iterable[Metric]:
        gauges = {
            "waiting": GaugeMetricFamily(
                "lorakit_waiting", "Requests or texts that wait for a model.", labels=["task"]
            ),
            "running": GaugeMetricFamily(
                "lorakit_running", "Requests that an engine reads or decodes.", labels=["task"]
            ),
            "kv_bytes": GaugeMetricFamily(
                "lorakit_kv_bytes", "Memory of keys and values of answers.", labels=["task"]
            ),
            "prefix_cache_bytes": GaugeMetricFamily(
                "lorakit_prefix_cache_bytes", "Memory of cached prefixes.", labels=["task"]
            ),
        }
        adapter_bytes = GaugeMetricFamily(
            "lorakit_adapter_bytes", "Memory of the adapters that a model carries.", labels=["task"]
        )
        events = CounterMetricFamily(
            "lorakit_adapter_events",
            "Loads, evictions and refusals of adapters.",
            labels=["adapter", "event"],
        )
        totals = {
            name: CounterMetricFamily(f"lorakit_engine_{name}", text, labels=["task"])
            for name, text in (
                ("steps", "Steps of decoding."),
                ("cached_tokens", "Tokens of prompts that the prefix cache had."),
                ("preemptions", "Times that an answer gave its place to older ones."),
            )
        }
        for model in self._service.models:
            task = str(model.kind)
            adapter_bytes.add_metric([task], model.store.bytes_in_memory)
            stats = None if model.engine is None else model.engine.stats
            waiting = model.batches.waiting + (0 if stats is None else stats.waiting)
            gauges["waiting"].add_metric([task], waiting)
            if stats is not None:
                for name in ("running", "kv_bytes", "prefix_cache_bytes"):
                    gauges[name].add_metric([task], getattr(stats, name))
                for name, family in totals.items():
                    family.add_metric([task], getattr(stats, name))
            for name, counts in model.store.counts().items():
                for event in ("loads", "evictions", "refusals"):
                    events.add_metric([name, event], getattr(counts, event))
        yield from (*gauges.values(), adapter_bytes, events, *totals.values())
