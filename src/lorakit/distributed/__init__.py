"""Several processes that train one adapter: agreeing, averaging, sharding."""

__all__: list[str] = []
