"""The thin products in Triton, for GPUs."""
