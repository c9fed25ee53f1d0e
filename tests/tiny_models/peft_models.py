"""Tiny models with PEFT's adapters, and the same adapters loaded by lorakit."""

import peft
import torch

from lorakit import load_adapter
from tiny_models.checks import randomize_


def peft_model(build, seed=3, **options):
    """Return a PEFT model in eval mode with random values in everything that is trained."""
    torch.manual_seed(0)
    model = peft.get_peft_model(build(), peft.LoraConfig(**options)).eval()
    return randomize_(model, seed=seed)


def loaded_from_peft(build, theirs, directory):
    """Save a PEFT model's adapter and load it into a fresh base; return that."""
    theirs.save_pretrained(directory)
    ours = build()
    load_adapter(ours, directory, trainable=True)
    return ours
