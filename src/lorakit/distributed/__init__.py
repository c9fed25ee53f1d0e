"""Several processes that train one adapter: agreeing, averaging, sharding."""
