"""Which rows of the table are not simply equal: where either tool refuses, or PEFT is not right."""

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal, NamedTuple

from oracle.features import FEATURES
from oracle.models import KINDS
from oracle.operations import OPERATIONS

MADE = "made"
"""Instead of an operation: the adapter cannot be made, so that nothing can be done with it."""


class Row(NamedTuple):
    """One row of the table."""

    kind: str
    feature: str
    operation: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a tool in some rows where it is not right.

    Attributes:
        features: Pattern of the features; alternatives are separated by "|".
        operations: Likewise of operations.
        kinds: Likewise of kinds.
        what: "refuses" raises an error; "differs" gives other outputs.
        message: Part of the error's text.
        reason: Why, for a reader of docs/adapters.md.
    """

    features: str = "*"
    operations: str = "*"
    kinds: str = "*"
    what: Literal["refuses", "differs"] = "refuses"
    message: str = ""
    reason: str

    def fits(self, row: Row) -> bool:
        """Return whether this is the outcome of a row."""
        if self.operations == "*" and row.operation == MADE:
            return False
        patterns = (self.kinds, self.features, self.operations)
        return all(
            any(fnmatch(word, part) for part in pattern.split("|"))
            for word, pattern in zip(row, patterns, strict=True)
        )


CONVOLUTIONS = "conv1d|conv2d|conv3d|grouped|dilated"

_ATTENTIONS = "attention|encoder"
_NO_LINEAR = "this initialization requires a linear layer"

LORAKIT = (
    Outcome(
        kinds=f"{_ATTENTIONS}|experts",
        features="dora",
        operations=MADE,
        message="use_dora",
        reason="no magnitudes if one parameter stores several weights",
    ),
    Outcome(
        kinds=f"embedding|conv1d|conv2d|conv3d|dilated|experts|{_ATTENTIONS}",
        features="pissa|olora",
        operations=MADE,
        message="it is not a linear layer",
        reason=_NO_LINEAR,
    ),
    Outcome(
        kinds="experts",
        operations="rows",
        message="Cannot run rows with different adapters",
        reason="experts process the tokens of all rows together",
    ),
    Outcome(
        features="tokens",
        operations="combined",
        message="got trainable_token_indices",
        reason="tensors trained in full, such as heads and biases, cannot be added",
    ),
    Outcome(
        kinds="gpt2",
        features="olora",
        operations="loaded",
        message="The adapter was made for another base",
        reason="PEFT's file does not account for the transposed weight",
    ),
    Outcome(
        kinds="grouped",
        features="orthogonal|pissa|olora",
        operations=MADE,
        message="Cannot adapt slices of body.0",
        reason="this initialization requires a whole matrix, without groups",
    ),
    Outcome(
        kinds="grouped",
        operations="merged|unmerged",
        message="it has groups=2",
        reason="the update of a grouped convolution does not have the shape of its weight",
    ),
    Outcome(
        kinds="grouped",
        features="dora",
        operations="combined",
        message="got use_dora=True",
        reason="a DoRA update depends on the base; merge such an adapter instead",
    ),
    Outcome(
        kinds="grouped",
        operations="combined",
        message="2 groups of channels",
        reason="updates of grouped convolutions cannot be combined",
    ),
    Outcome(
        features="dora",
        operations="combined",
        message="got use_dora=True",
        reason="a DoRA update depends on the base; merge such an adapter instead",
    ),
    Outcome(
        features="head|lora_only|all_biases",
        operations="combined",
        message="trained in full cannot be added",
        reason="tensors trained in full, such as heads and biases, cannot be added",
    ),
)
_FAST_PATH = "torch's fast path for evaluation reads the weights and ignores the adapter"
_KEPT_BIASES = "the trained biases stay active when the adapter is off"
PEFT = (
    Outcome(
        kinds=CONVOLUTIONS,
        features="orthogonal|pissa|olora",
        operations=MADE,
        message="Unknown initialization",
        reason=_NO_LINEAR,
    ),
    Outcome(
        kinds=f"{_ATTENTIONS}|experts",
        features="orthogonal|pissa|olora",
        operations=MADE,
        message="has no attribute 'weight'",
        reason=_NO_LINEAR,
    ),
    Outcome(
        kinds=_ATTENTIONS,
        features="dora",
        operations=MADE,
        message="does not support DoRA",
        reason="not supported with DoRA",
    ),
    Outcome(
        kinds="experts",
        features="dora",
        operations=MADE,
        message="does not work with use_dora",
        reason="not supported with DoRA",
    ),
    Outcome(
        kinds="experts",
        features="dropout",
        operations=MADE,
        message="does not work with lora_dropout",
        reason="no dropout in the low-rank path of experts",
    ),
    Outcome(
        kinds="experts",
        operations="combined",
        message="does not support targeting nn.Parameter",
        reason="experts cannot be combined",
    ),
    Outcome(
        kinds=f"{_ATTENTIONS}|experts",
        operations="rows",
        message="does not support mixed adapter batches",
        reason="no mixed rows for this kind of layer",
    ),
    Outcome(
        kinds="encoder",
        features="plain|rslora|dropout|patterns",
        operations="gradients",
        message="does not require grad",
        reason=_FAST_PATH,
    ),
    Outcome(
        kinds="encoder",
        features="plain|rslora|dropout|patterns|head",
        operations="outputs|saved|loaded|unmerged",
        what="differs",
        reason=_FAST_PATH,
    ),
    Outcome(
        kinds="encoder",
        features="plain|rslora|dropout|patterns",
        operations="combined",
        what="differs",
        reason=_FAST_PATH,
    ),
    Outcome(
        kinds="encoder", features="head", operations="gradients", what="differs", reason=_FAST_PATH
    ),
    Outcome(
        kinds=_ATTENTIONS,
        operations="gradients",
        what="differs",
        reason="the update of the output projection is added twice, its gradient once",
    ),
    Outcome(
        kinds="gpt2",
        features="olora",
        operations="outputs|gradients|loaded|merged|unmerged|rows|combined",
        reason="it does not transpose the weight of a Conv1D",
    ),
    Outcome(
        features="pissa|olora",
        operations="rows|off|combined",
        what="differs",
        reason="the initialization has changed the base, so the base without the adapter differs",
    ),
    Outcome(
        kinds="grouped",
        features="dora",
        operations="outputs|gradients|saved|loaded",
        what="differs",
        reason="the magnitudes are not the row norms of a grouped convolution",
    ),
    Outcome(
        kinds="grouped",
        operations="merged|unmerged",
        message="Merging is not supported",
        reason="not supported, as in lorakit",
    ),
    Outcome(
        kinds="dilated",
        features="lora_only|all_biases",
        operations="combined",
        message="supports only 1 adapter with bias",
        reason="only one adapter with biases at a time",
    ),
    Outcome(
        kinds="dilated",
        features="head",
        operations="combined",
        message="modules_to_save",
        reason="modules trained in full cannot be added",
    ),
    Outcome(
        kinds="dilated",
        features="dora",
        operations="rows",
        message="when DoRA is enabled",
        reason="not supported with DoRA",
    ),
    Outcome(
        kinds="dilated",
        operations="outputs|gradients|saved|loaded|unmerged|rows|combined",
        message="The size of tensor a",
        reason="the low-rank path ignores dilation and padding mode",
    ),
    Outcome(
        features="rslora",
        operations="combined",
        what="differs",
        reason="it ignores the rsLoRA scaling when combining",
    ),
    Outcome(
        features="head",
        operations="combined",
        message="modules_to_save",
        reason="modules trained in full cannot be added",
    ),
    Outcome(
        features="lora_only|all_biases",
        operations="combined",
        message="supports only 1 adapter with bias",
        reason="only one adapter with biases at a time",
    ),
    Outcome(
        features="lora_only|all_biases", operations="rows|off", what="differs", reason=_KEPT_BIASES
    ),
    Outcome(
        features="dora",
        operations="rows",
        message="when DoRA is enabled",
        reason="not supported with DoRA",
    ),
)


NEEDS_THE_OTHER = {"saved": "lorakit", "loaded": "PEFT"}
"""Operations that begin with the file of one tool."""


def has_file(row: Row) -> bool:
    """Return whether the file that an operation begins with can be made."""
    maker = {"lorakit": LORAKIT, "PEFT": PEFT}.get(NEEDS_THE_OTHER.get(row.operation, ""))
    return maker is None or not cannot_be_made(maker, row.kind, row.feature)


def outcome(outcomes: tuple[Outcome, ...], row: Row) -> Outcome | None:
    """Return what a tool does in a row, or None where it does what is right."""
    made = row._replace(operation=MADE)
    return next((one for one in outcomes if one.fits(made) or one.fits(row)), None)


def cannot_be_made(outcomes: tuple[Outcome, ...], kind: str, feature: str) -> bool:
    """Return whether a tool refuses to make such an adapter at all."""
    return any(one.fits(Row(kind, feature, MADE)) for one in outcomes)


ROWS = tuple(
    Row(kind, feature, operation)
    for kind, model in KINDS.items()
    for feature, asked in FEATURES.items()
    if asked.options(model) is not None
    for operation in OPERATIONS
)
