"""Reading data files: csv, json, parquet, saved datasets and the hub."""
