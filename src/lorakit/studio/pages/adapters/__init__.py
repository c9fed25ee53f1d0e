"""Adapters: what each is made of; combining, merging, converting and exporting them."""

__all__: list[str] = []
