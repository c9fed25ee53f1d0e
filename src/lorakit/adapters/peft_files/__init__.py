"""The two files of an adapter in PEFT's layout: their names, keys, fields and soundness."""

__all__: list[str] = []
