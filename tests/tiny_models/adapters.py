"""Adapters without a model: random ones, and ones with known singular values."""

import torch

from lorakit import Adapter, LoraConfig


def adapter_of(factors, embeddings=(), base_model=None, **config):
    """Return an adapter of these (A, B) by path; its rank is that of the first."""
    r = next(iter(factors.values()))[0].shape[0]
    settings = LoraConfig(**{"r": r, "lora_alpha": r} | config)
    return Adapter(settings, factors, embeddings=frozenset(embeddings), base_model=base_model)


def random_factors(r, in_features, out_features, seed=0):
    """Return normal (A, B) in float32."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(r, in_features, generator=generator)
    return A, torch.randn(out_features, r, generator=generator)


def layered_adapter(layers=2, kinds=("q_proj", "v_proj"), r=4, width=24, seed=0, **config):
    """Return a random adapter of `model.layers.<n>.attn.<kind>`, all of one width."""
    paths = [f"model.layers.{layer}.attn.{kind}" for layer in range(layers) for kind in kinds]
    factors = {
        path: random_factors(r, width, width, seed=1000 * seed + number)
        for number, path in enumerate(paths)
    }
    return adapter_of(factors, **config)


def factors_with(singular_values, in_features, out_features, seed=0):
    """Return float64 (A, B) whose product has these singular values, and its directions.

    Returns: (A, B), left (out, k), right (k, in).
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(singular_values, dtype=torch.float64)
    left = orthonormal(out_features, len(values), generator)
    right = orthonormal(in_features, len(values), generator).T
    # A mix of rank k on both sides, so that no single factor shows the directions.
    mix = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    A = mix @ right
    return (A, left * values @ torch.linalg.inv(mix)), left, right


def orthonormal(n, count, generator):
    gaussian = torch.randn(n, count, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian)[0]


def steep_adapter():
    """Return two updates of r = 4 whose first direction has 16 / 20 of the energy."""
    values = [4.0, 3**0.5, 1.0, 0.0]
    factors = {f"layers.{n}.q": factors_with(values, 10, 8, seed=n)[0] for n in range(2)}
    return adapter_of(factors, base_model="some/base")


def weights_of(adapter):
    """Return random base weights for the modules of an adapter."""
    generator = torch.Generator().manual_seed(5)
    shapes = {path: adapter.delta_weight(path).shape for path in adapter.factors}
    return {path: torch.randn(shape, generator=generator) for path, shape in shapes.items()}
