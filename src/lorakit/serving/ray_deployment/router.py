"""Which replica answers a request for an adapter."""

from __future__ import annotations

import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

STATS_PERIOD_S = 1.0
"""Time between two reports of a replica about the adapters that it has in memory."""

_SENT_COUNTS_S = 3 * STATS_PERIOD_S
"""Time in which a replica that was sent a request for an adapter counts as having it in memory:
by then it has said so itself."""


class AdapterRouter(RequestRouter):
    """Sends a request to the least loaded replica that has its adapter in memory.

    Once each of them has a full batch, the least loaded of all replicas is chosen, which then loads
    the adapter too: an adapter is on as many replicas as its load needs.
    """

    def initialize_state(self, *, full_batch: int) -> None:
        """Take the number of requests that a replica decodes together."""
        self._full_batch = full_batch
        self._sent: dict[tuple[str, ReplicaID], float] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replicas of which the least loaded one is chosen.

        Of equally loaded ones, the first is chosen: that with the fewest adapters in memory.
        """
        adapter = "" if pending_request is None else pending_request.metadata.multiplexed_model_id
        having = [
            replica
            for replica in candidate_replicas
            if adapter and self._has(replica, adapter) and self._load(replica) < self._full_batch
        ]
        return [having or sorted(candidate_replicas, key=lambda one: len(_in_memory(one)))]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Remember that a replica loads an adapter."""
        now = time.monotonic()
        if adapter := pending_request.metadata.multiplexed_model_id:
            recent = {key: at for key, at in self._sent.items() if at > now - _SENT_COUNTS_S}
            self._sent = recent | {(adapter, replica_id): now}

    def _has(self, replica: RunningReplica, adapter: str) -> bool:
        sent = self._sent.get((adapter, replica.replica_id), float("-inf"))
        return adapter in _in_memory(replica) or sent > time.monotonic() - _SENT_COUNTS_S

    def _load(self, replica: RunningReplica) -> int:
        return self._replica_queue_len_cache.get(replica.replica_id) or 0


def _in_memory(replica: RunningReplica) -> list[str]:
    return replica.routing_stats.get("adapters", [])
