"""The adapters that a server knows, and those of them that its model carries."""

from lorakit.serving.store.adapter_store import AdapterStore
from lorakit.serving.store.values import (
    AdapterCounts,
    AdapterPlaces,
    KnownAdapter,
    Lease,
    StoreSettings,
)

__all__ = [
    "AdapterCounts",
    "AdapterPlaces",
    "AdapterStore",
    "KnownAdapter",
    "Lease",
    "StoreSettings",
]
