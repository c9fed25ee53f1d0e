"""The thin products in Triton, for GPUs."""

__all__: list[str] = []
