"""Training one adapter in several processes: collectives, gradient averaging, sharding."""

__all__: list[str] = []
