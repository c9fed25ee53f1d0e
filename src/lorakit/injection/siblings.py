"""Which layers of a model read the same activation, by the names transformers gives them."""

import re
from collections.abc import Iterable

from torch import nn

from lorakit.layers.executors.siblings import SiblingGroup
from lorakit.layers.kinds.linear import AdaptedLinear

_NAMES = (
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
    ("w1", "w3"),
)
"""Children of one parent, in the order in which it usually calls them."""

_CROSS_ATTENTION = re.compile(r"cross|encoder_attn|EncDec", re.IGNORECASE)
"""Parents whose query reads another activation than key and value."""


def group_siblings(model: nn.Module, paths: Iterable[str]) -> None:
    """Group adapted layers that read the same activation, so that they compute together.

    The groups are guessed by name; at run time the tensor itself decides. So a wrong guess, also of
    the order, costs a little time and never changes a result.
    """
    for parent_path in dict.fromkeys(path.rpartition(".")[0] for path in paths):
        parent = model.get_submodule(parent_path)
        for names in _NAMES:
            wanted = (
                names[1:] if _CROSS_ATTENTION.search(parent_path) and len(names) == 3 else names
            )
            children = [getattr(parent, name, None) for name in wanted]
            members = [child for child in children if isinstance(child, AdaptedLinear)]
            group = members[0].siblings if members else None
            if len(members) < 2 or (group is not None and set(group.members) == {*members}):
                continue
            group = SiblingGroup([*members])
            for member in members:
                member.siblings = group
                member.choose_executor()
