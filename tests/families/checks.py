"""What has to hold for a family: each check is a function that raises where it does not."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import peft
import torch
from tests.families.case import ALPHA, Case, NotComparedError, R, randomize
from tests.families.exceptions import WITHOUT_REENTRANT
from tests.families.outcomes import CHECK_NAMES, Outcome
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import lorakit
from lorakit.errors import LorakitError
from lorakit.injection.state import adapted_layers, replaced_modules

TOLERANCE = 1e-5
"""Largest error, in units of the largest expected value."""
ROUNDED_TOLERANCE = 1e-4
"""The same, where weights are rounded once more (merging) or gradients are added up twice."""
MOVED = 1e-3
"""What an adapter changes at least, in the same units."""


class WrongError(Exception):
    """A result is wrong."""


class SaidError(Exception):
    """lorakit warned of what will be wrong."""


def _training(model: nn.Module) -> nn.Module:
    """Return the model in training mode, but for statistics of batches."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def _same(
    got: list[Tensor], expected: list[Tensor], what: str, tolerance: float = TOLERANCE
) -> None:
    if (error := _error(got, expected)) > tolerance:
        raise WrongError(f"{what}: off by {error:.1e}")


def _error(got: list[Tensor], expected: list[Tensor]) -> float:
    if [t.shape for t in got] != [t.shape for t in expected]:
        return float("inf")
    return max(map(_relative, got, expected))


def _relative(got: Tensor, expected: Tensor) -> float:
    finite = expected.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return float("inf")
    if not finite.any():
        return 0.0
    difference = (got.double() - expected.double())[finite].abs().max()
    return (difference / expected[finite].abs().max().clamp_min(1e-12)).item()


def identity(case: Case) -> None:
    """A fresh adapter changes nothing."""
    model = case.fresh()
    lorakit.add_adapter(model, case.config)
    _same(case.evaluated(model), case.expected, "outputs with B = 0")


def gradients(case: Case) -> None:
    """Outputs change; factors get the gradients of dense weights; the base gets none."""
    if _error(case.adapted_outputs, case.expected) < MOVED:
        raise WrongError("a random adapter changes no output")
    model = case.adapted
    model.zero_grad()
    case.loss(_training(model)).backward()
    factors = {
        p for _, layer in adapted_layers(model) for p in layer.updates["default"].parameters()
    }
    for name, parameter in model.named_parameters():
        is_ours = parameter in factors or ".trained_copies." in name
        if not is_ours and (parameter.requires_grad or parameter.grad is not None):
            raise WrongError(f"the base is not frozen: {name}")
    dense = _dense(case)
    case.loss(_training(dense)).backward()
    found = []
    for path, layer in adapted_layers(model):
        update, module = layer.updates["default"], dense.get_submodule(path)
        weight = getattr(module, layer.weight_name)
        full = torch.zeros_like(weight) if weight.grad is None else weight.grad
        full = full.T if isinstance(module, Conv1D) else full.flatten(1)
        A, B, s = update.lora_A, update.lora_B, update.scaling
        found.append((f"{path}.lora_A", _gradient(A), s * _matrix(B).T @ full))
        found.append((f"{path}.lora_B", _gradient(B), s * full @ _matrix(A).T))
    largest = max((expected.abs().max() for *_, expected in found), default=0.0)
    problems = [
        f"{name} is {got.abs().max() / expected.abs().max():.2g} of the right one"
        for name, got, expected in found
        if (got - expected).abs().max() > 1e-3 * expected.abs().max() + 1e-6 * largest
    ]
    if problems:
        raise WrongError(f"{len(problems)} gradients: " + ", ".join(problems[:4]))
    case.unreached = sum(not expected.any() for name, _, expected in found if name.endswith("B"))


def _gradient(factor: Tensor) -> Tensor:
    return (torch.zeros_like(factor) if factor.grad is None else factor.grad).flatten(1)


def _matrix(factor: Tensor) -> Tensor:
    """Return a factor, of a convolution too, as a matrix."""
    return factor.detach().flatten(1)


def _dense(case: Case) -> nn.Module:
    """Return the base with the update added to its weights."""
    dense = case.fresh()
    for path, head in replaced_modules(case.adapted):
        dense.get_submodule(path).load_state_dict(head.trained_copies["default"].state_dict())
    for path, layer in adapted_layers(case.adapted):
        update, module = layer.updates["default"], dense.get_submodule(path)
        delta = update.scaling * _matrix(update.lora_B) @ _matrix(update.lora_A)
        weight = getattr(module, layer.weight_name).detach()
        delta = (delta.T if isinstance(module, Conv1D) else delta).view_as(weight)
        # A new parameter, so that one that is tied to it elsewhere stays as it is.
        setattr(module, layer.weight_name, nn.Parameter(weight + delta))
    return dense


def reload(case: Case) -> None:
    """A saved adapter gives the same outputs in a fresh model."""
    model = case.fresh()
    lorakit.load_adapter(model, case.file)
    _same(case.evaluated(model), case.adapted_outputs, "outputs after loading")


def to_peft(case: Case) -> None:
    """PEFT reads lorakit's file, or saving it has said that PEFT will not."""
    path = case.file
    try:
        model = peft.PeftModel.from_pretrained(case.fresh(), path)
        _same(case.evaluated(model), case.adapted_outputs, "outputs in PEFT")
    except Exception as error:
        if case.said:
            raise SaidError(case.said[0]) from error
        _outputs_of_peft(case)
        raise WrongError(f"PEFT refuses the file: {type(error).__name__}: {error}") from error


def from_peft(case: Case) -> None:
    """Lorakit reads PEFT's file of all linear layers."""
    expected = _outputs_of_peft(case)
    model = case.fresh()
    lorakit.load_adapter(model, case.directory / "peft")
    _same(case.evaluated(model), expected, "outputs of PEFT's file")


def _outputs_of_peft(case: Case) -> list[Tensor]:
    """Let PEFT save a random adapter, and return its outputs.

    Raises:
        NotComparedError: PEFT cannot make it, or does not read what it has saved.
    """
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=case.targets)
    try:
        theirs = peft.get_peft_model(case.fresh(), config)
        randomize(theirs)
        expected = case.evaluated(theirs)
        theirs.save_pretrained(case.directory / "peft")
        again = peft.PeftModel.from_pretrained(case.fresh(), case.directory / "peft")
        _same(case.evaluated(again), expected, "it does not read its own file")
    except Exception as error:
        said = str(error) if isinstance(error, WrongError) else f"{type(error).__name__}: {error}"
        raise NotComparedError(f"PEFT alone: {said}") from error
    return expected


def disabled(case: Case) -> None:
    """Without the adapter the outputs are the base's."""
    case.adapted.eval()
    with lorakit.disable_adapters(case.adapted):
        _same(case.evaluated(case.adapted), case.expected, "outputs when disabled")
    _same(case.evaluated(case.adapted), case.adapted_outputs, "outputs when enabled again")


def checkpointing(case: Case) -> None:
    """Recomputing activations changes neither loss nor gradients."""
    if not case.base.supports_gradient_checkpointing:
        raise NotComparedError("transformers has no checkpointing for it")
    model = _training(case.adapted)
    expected = _loss_and_gradients(case, model)
    for reentrant in (False,) if case.family in WITHOUT_REENTRANT else (False, True):
        if (obstacle := _checkpointing_obstacle(case, reentrant)) is not None:
            if reentrant:
                continue
            raise NotComparedError(obstacle)
        with lorakit.prepare_for_training(
            model, gradient_checkpointing=True, use_reentrant=reentrant
        ):
            got = _loss_and_gradients(case, model)
        _same(got, expected, f"gradients with use_reentrant={reentrant}", ROUNDED_TOLERANCE)


def _checkpointing_obstacle(case: Case, reentrant: bool) -> str | None:
    """Return why transformers' own model cannot be trained with checkpointing, or None.

    Only what the adapter adapts is trained, so that the first layer's input needs no gradient.
    """
    base = _training(case.fresh()).requires_grad_(False)
    try:
        for path, layer in adapted_layers(case.adapted):
            getattr(base.get_submodule(path), layer.weight_name).requires_grad_(True)
        expected = _loss_and_gradients(case, base)
        kwargs = {"use_reentrant": reentrant}
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        if reentrant:
            base.enable_input_require_grads()
        _same(_loss_and_gradients(case, base), expected, "other gradients", ROUNDED_TOLERANCE)
    except Exception as error:
        return f"transformers: {type(error).__name__}: {error}"
    return None


def _loss_and_gradients(case: Case, model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    loss = case.loss(model)
    loss.backward()
    found = [loss.detach()]
    found += [
        p.grad.clone() if p.grad is not None else torch.zeros_like(p)
        for p in model.parameters()
        if p.requires_grad
    ]
    model.zero_grad()
    return [found[0], torch.cat([t.flatten() for t in found[1:]])]


def merged(case: Case) -> None:
    """Merged weights give the same, and unmerging gives the base's bytes."""
    model = case.copied()
    lorakit.merge_adapters(model)
    _same(case.evaluated(model), case.adapted_outputs, "merged outputs", ROUNDED_TOLERANCE)
    lorakit.unmerge_adapters(model)
    now = {name: p for name, p in model.named_parameters() if ".updates." not in name}
    for name, parameter in case.base.named_parameters():
        if name not in now or not torch.equal(now[name], parameter):
            raise WrongError(f"unmerged, but another {name}")


def from_pretrained(case: Case) -> None:
    """A merged model saved by transformers is loaded by transformers."""
    kind = type(case.base)
    try:
        case.base.save_pretrained(case.directory / "base")
        _same(case.evaluated(kind.from_pretrained(case.directory / "base")), case.expected, "base")
    except Exception as error:
        raise NotComparedError(f"transformers: {type(error).__name__}: {error}") from error
    model = lorakit.merge_and_unload(case.copied())
    if model.state_dict().keys() != case.base.state_dict().keys():
        raise WrongError("other keys after merging")
    model.save_pretrained(case.directory / "merged")
    loaded = kind.from_pretrained(case.directory / "merged")
    _same(
        case.evaluated(loaded),
        case.adapted_outputs,
        "outputs of the loaded model",
        ROUNDED_TOLERANCE,
    )


CHECKS: dict[str, Callable[[Case], None]] = dict(
    zip(
        CHECK_NAMES,
        (
            identity,
            gradients,
            reload,
            to_peft,
            from_peft,
            disabled,
            checkpointing,
            merged,
            from_pretrained,
        ),
        strict=True,
    )
)


def outcome(check: Callable[[Case], None], case: Case) -> Outcome:
    """Return the outcome of a check."""
    with _silent():
        try:
            check(case)
        except (LorakitError, SaidError) as error:
            return Outcome("refused", _short(error, case))
        except NotComparedError as error:
            return Outcome("not compared", _short(error, case))
        except WrongError as error:
            return Outcome("wrong", _short(error, case))
        except Exception as error:
            return Outcome("wrong", f"{type(error).__name__}: {_short(error, case)}")
    return Outcome("right")


def _short(error: Exception, case: Case) -> str:
    """Return the beginning of an error's text, without names that change."""
    text = " ".join(str(error).replace(str(case.directory), "FILE").split())
    # Sets are written in another order in each process.
    text = re.sub(r"\{('[^{}]*')\}", lambda one: ", ".join(sorted(one[1].split(", "))), text)
    return text if len(text) < 300 else text[:300] + " …"


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
