"""Reading data files: csv, json, parquet, saved datasets and the hub."""

__all__: list[str] = []
