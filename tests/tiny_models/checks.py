"""What tests do with any tiny model: run it, fill it, train it, and compare it."""

import torch

from tiny_models.networks import TinyNet
from tolerances import LOGITS_TOLERANCE, largest_error


def tokens(model=None, rows=2, length=6, seed=0):
    """Return the inputs of any model here; sequence-to-sequence models get decoder inputs too."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 12, (rows, length), generator=generator)
    if isinstance(model, TinyNet):
        return {"tokens": ids}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model is not None and model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 12, (rows, 4), generator=generator)
    return inputs


def padded_batches(count=3, rows=4, length=8, padded=2):
    """Return batches for a language model; all rows but the first are padded, without labels."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        ids = torch.randint(3, 32, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        if padded:
            mask[1:, -padded:] = 0
        labels = ids.masked_fill(mask == 0, -100)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def logits(model, **options):
    """Return a model's output on `tokens(model)` without gradients."""
    with torch.no_grad():
        out = model(**tokens(model, **options))
    return out if isinstance(out, torch.Tensor) else out.logits


def randomize_(model, seed=7, scale=0.3):
    """Give every trainable parameter random values, as training would, and return the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * scale
                parameter.copy_(noise.to(parameter.dtype))
    return model


def train_steps(model, steps=2, learning_rate=0.1):
    """Take optimizer steps on the model's own trainable parameters; return the losses."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    losses = []
    for step in range(steps):
        out = model(**tokens(model, seed=step))
        loss = (out if isinstance(out, torch.Tensor) else out.logits).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def snapshot(model):
    """Return everything about a model that an adapter must give back: see `assert_untouched`."""
    return {
        "parameters": {n: (id(p), p.requires_grad) for n, p in model.named_parameters()},
        "values": {n: t.clone() for n, t in model.state_dict().items()},
        "modules": {
            n: (id(m), type(m), sorted(vars(m)), m.training) for n, m in model.named_modules()
        },
    }


def assert_untouched(model, before):
    """Fail if a model differs from its snapshot in any name, identity, class, flag or bit."""
    after = snapshot(model)
    assert after["modules"] == before["modules"]
    assert after["parameters"] == before["parameters"]
    assert list(after["values"]) == list(before["values"])
    for name, value in before["values"].items():
        assert torch.equal(after["values"][name], value), name


def gradients(model, inputs=None):
    """Return the output, and the gradients of the sum of its squares by parameter.

    `inputs` is one tensor or the arguments of forward, by default `tokens(model)`.
    """
    model.zero_grad()
    inputs = tokens(model) if inputs is None else inputs
    out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    out = out if isinstance(out, torch.Tensor) else out.logits
    out.float().square().sum().backward()
    return out.detach(), {
        name.removeprefix("_orig_mod."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same_gradients(got, expected):
    """Fail if two results of `gradients` differ by more than rounding through a tiny model."""
    (out, grads), (expected_out, expected_grads) = got, expected
    assert largest_error(out, expected_out) < LOGITS_TOLERANCE
    assert list(grads) == list(expected_grads) and grads
    for name, gradient in expected_grads.items():
        assert largest_error(grads[name], gradient) < 1e-4, name
