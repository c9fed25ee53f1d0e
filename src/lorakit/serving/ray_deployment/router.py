"""Which replica answers a request for an adapter."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

STATS_PERIOD_S = 1.0
"""Time between two reports of a replica about the adapters that it has in memory."""

_SENT_COUNTS_S = 3 * STATS_PERIOD_S
"""Time in which a replica that was sent a request for an adapter counts as having it in memory:
by then it has said so itself."""


_CLAIM_S = 5.0
"""Time within which a request is sent to the replica that was chosen for it."""


class AdapterRouter(RequestRouter):
    """Sends a request to the least loaded replica that has its adapter in memory.

    Once each of them has a full batch, the least loaded of all replicas is chosen, which then loads
    the adapter too: an adapter is on as many replicas as its load needs.
    """

    def initialize_state(self, *, full_batch: int) -> None:
        """Take the number of requests that a replica decodes together."""
        self._full_batch = full_batch
        self._sent: dict[tuple[str, ReplicaID], float] = {}
        self._running: dict[str, tuple[ReplicaID, float]] = {}
        """Replica of each request, by its id, and until when it counts. Ray's own counts drift, and
        do not have a request that was assigned but not sent yet."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the chosen replica, and the others in case it takes no requests.

        Of equally loaded ones, that with the fewest adapters in memory is chosen.
        """
        if not candidate_replicas or pending_request is None:
            return [candidate_replicas]
        loads = self._loads()
        by_load = sorted(
            candidate_replicas, key=lambda one: (loads[one.replica_id], len(_in_memory(one)))
        )
        adapter = pending_request.metadata.multiplexed_model_id
        having = (
            one
            for one in by_load
            if adapter and self._has(one, adapter) and loads[one.replica_id] < self._full_batch
        )
        chosen = next(having, by_load[0])
        claim = chosen.replica_id, time.monotonic() + _CLAIM_S
        self._running[pending_request.metadata.internal_request_id] = claim
        return [[chosen], [one for one in by_load if one is not chosen]]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Count a request, and remember that its replica loads the adapter."""
        self._running[pending_request.metadata.internal_request_id] = replica_id, float("inf")
        now = time.monotonic()
        if adapter := pending_request.metadata.multiplexed_model_id:
            recent = {key: at for key, at in self._sent.items() if at > now - _SENT_COUNTS_S}
            self._sent = recent | {(adapter, replica_id): now}

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count a request no longer, however it ended."""
        counted, _ = self._running.get(internal_request_id, (None, 0.0))
        if counted == replica_id:  # else another replica has it now
            del self._running[internal_request_id]

    def _has(self, replica: RunningReplica, adapter: str) -> bool:
        sent = self._sent.get((adapter, replica.replica_id), float("-inf"))
        return adapter in _in_memory(replica) or sent > time.monotonic() - _SENT_COUNTS_S

    def _loads(self) -> Counter[ReplicaID]:
        """Return the number of requests that each replica has."""
        now = time.monotonic()
        self._running = {
            key: (replica_id, until)
            for key, (replica_id, until) in self._running.items()
            if until > now and replica_id in self.curr_replicas
        }
        return Counter(replica_id for replica_id, _ in self._running.values())


def _in_memory(replica: RunningReplica) -> list[str]:
    return replica.routing_stats.get("adapters", [])
