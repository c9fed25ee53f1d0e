"""LoRA on torch.nn.MultiheadAttention: its stacked input projection and its output projection."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lorakit.errors import ShapeError
from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.kinds.linear import AdaptedLinear
from lorakit.layers.replaced import ReplacedModule
from lorakit.ops import draw_seed, low_rank_linear


class LoraAttentionOutput(AdaptedLinear, NonDynamicallyQuantizableLinear):
    """The output projection of an attention; `LoraMultiheadAttention` calls it."""

    plain_class = NonDynamicallyQuantizableLinear


class LoraMultiheadAttention(AdaptedLayer, nn.MultiheadAttention):
    """An attention whose in_proj_weight carries updates, lora_A (r, embed), lora_B (3 embed, r).

    torch reads the weights of both projections without calling a layer, so this class has another
    forward: projections as adapted layers, and the attention of torch between them. It runs while
    an update of either projection acts; otherwise torch's forward runs.
    """

    plain_class = nn.MultiheadAttention
    is_matrix_product = True
    applies_row_scales = False
    weight_name = "in_proj_weight"

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a property instead of an attribute
        """The stacked weight of query, key and value, (3 embed, embed)."""
        return self.in_proj_weight

    @property
    def bias(self) -> Tensor | None:
        """The stacked bias, (3 embed,)."""
        return self.in_proj_bias

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (embed_dim, 3 embed_dim)."""
        return module.embed_dim, 3 * module.embed_dim  # type: ignore[return-value,operator]  # an attribute of a module

    @classmethod
    def compute_dtype_of(cls, module: nn.Module) -> torch.dtype:
        """Return the dtype of the stacked weight."""
        return module.in_proj_weight.dtype  # type: ignore[union-attr,return-value]  # an attribute of a module

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attend as torch does; see torch.nn.MultiheadAttention for arguments and shapes."""
        acts_per_row = self.per_row_adapters is not None and self.acts_per_row()
        if acts_per_row or self.acting_updates() or _acts(self.out_proj):
            return self._attend(acts_per_row, *args, **kwargs)
        return nn.MultiheadAttention.forward(self, *args, **kwargs)

    def _attend(
        self,
        acts_per_row: bool,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the updates.

        Raises:
            ShapeError: An input is nested, a mask has another shape than the scores, or is_causal
                is given without the mask it describes.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            raise ShapeError(
                "An adapted MultiheadAttention got a nested tensor, expected a padded one with a "
                "key_padding_mask. Convert it with to_padded_tensor."
            )
        if is_causal and attn_mask is None:
            raise ShapeError(
                "An adapted MultiheadAttention got is_causal=True without attn_mask, expected the "
                "mask as well, as torch does. Pass Transformer.generate_square_subsequent_mask."
            )
        is_batched = query.dim() == 3
        batch_first = self.batch_first and is_batched
        if acts_per_row:
            q, k, v = self._project_per_row(query, key, value, batch_first)
        else:
            q, k, v = self._project(query, key, value)
        heads = _Heads(*(self._by_head(x, is_batched, batch_first) for x in (q, k, v)))
        if not is_batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if is_causal else _check_mask(attn_mask, heads)
        heads, mask = self._extend(heads, _with_padding(mask, key_padding_mask, heads.q.dtype))
        probability = self.dropout if self.training else 0.0
        if need_weights:
            attended, weights = _explicit_attention(heads, mask, probability)
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if is_batched else weights.squeeze(0)
        else:
            weights = None
            attended = F.scaled_dot_product_attention(
                heads.q, heads.k, heads.v, mask, probability, is_causal
            )
        # (N, H, L, D): batch rows are expected in the first dimension.
        output = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not is_batched:
            return output.squeeze(0), weights
        return output if batch_first else output.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value projected, in the layout they came in."""
        embed = self.embed_dim
        W0, bias, terms = self.operands(self.acting_updates())
        if query is key and key is value:
            return low_rank_linear(query, W0, bias, terms).chunk(3, dim=-1)  # type: ignore[return-value]  # three chunks

        def part(x: Tensor, rows: slice) -> Tensor:
            # Each activation has its own mask.
            seed = draw_seed() if any(term.seed is not None for term in terms) else None
            parts = [
                term._replace(B=term.B[rows], seed=None if term.seed is None else seed)
                for term in terms
            ]
            return low_rank_linear(x, W0[rows], None if bias is None else bias[rows], parts)  # type: ignore[index]  # rows of a dense weight

        q = part(query, slice(0, embed))
        if key is value:
            k, v = part(key, slice(embed, None)).chunk(2, dim=-1)
            return q, k, v
        return q, part(key, slice(embed, 2 * embed)), part(value, slice(2 * embed, None))

    def _project_per_row(
        self, query: Tensor, key: Tensor, value: Tensor, batch_first: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project batch rows with different adapters; each distinct input once, for all slices."""
        projected: dict[int, Tensor] = {}
        for x in (query, key, value):
            if id(x) not in projected:
                rows = x if batch_first else x.transpose(0, 1)
                h = self.per_row_adapters(self, rows)  # type: ignore[misc]  # set while it acts
                projected[id(x)] = h if batch_first else h.transpose(0, 1)
        q, _, _ = projected[id(query)].chunk(3, dim=-1)
        _, k, _ = projected[id(key)].chunk(3, dim=-1)
        _, _, v = projected[id(value)].chunk(3, dim=-1)
        return q, k, v

    def _by_head(self, x: Tensor, is_batched: bool, batch_first: bool) -> Tensor:
        """Return a projection as (N, H, length, D)."""
        if not is_batched:
            x = x.unsqueeze(0)
        elif not batch_first:
            x = x.transpose(0, 1)
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _extend(self, heads: _Heads, mask: Tensor | None) -> tuple[_Heads, Tensor | None]:
        """Append what add_bias_kv and add_zero_attn add to the keys and values."""
        q, k, v = heads
        size = (len(k), self.num_heads, 1, self.head_dim)
        added = []
        if self.bias_k is not None and self.bias_v is not None:
            learned = (
                b.view(1, self.num_heads, 1, self.head_dim) for b in (self.bias_k, self.bias_v)
            )
            added.append(tuple(b.expand(size).to(k.dtype) for b in learned))
        if self.add_zero_attn:
            added.append((k.new_zeros(size), v.new_zeros(size)))
        for more_k, more_v in added:
            k, v = torch.cat([k, more_k], dim=2), torch.cat([v, more_v], dim=2)
            mask = None if mask is None else F.pad(mask, (0, 1))
        return _Heads(q, k, v), mask


class _Heads(NamedTuple):
    """Queries (N, H, L, D), keys and values (N, H, S, D)."""

    q: Tensor
    k: Tensor
    v: Tensor


def _acts(out_proj: nn.Module) -> bool:
    """Whether an output projection computes something else than its weight says."""
    if isinstance(out_proj, ReplacedModule) and (
        out_proj.active_copy is not None or out_proj.per_row_adapters is not None
    ):
        return True
    return isinstance(out_proj, AdaptedLayer) and (
        out_proj.per_row_adapters is not None or bool(out_proj.acting_updates())
    )


def _explicit_attention(
    heads: _Heads, mask: Tensor | None, drop_probability: float
) -> tuple[Tensor, Tensor]:
    """Return the attention output, (N, H, L, D), and the attention weights, (N, H, L, S)."""
    q, k, v = heads
    scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    if drop_probability > 0:
        weights = F.dropout(weights, drop_probability)
    return weights @ v, weights


def _check_mask(mask: Tensor | None, heads: _Heads) -> Tensor | None:
    """Return an attention mask as (1 or N, 1 or H, L, S)."""
    if mask is None:
        return None
    (rows, count, length, _), source = heads.q.shape, heads.k.shape[2]
    if mask.shape == (length, source):
        return mask[None, None]
    if mask.shape == (rows * count, length, source):
        return mask.view(rows, count, length, source)
    raise ShapeError(
        f"attn_mask of an adapted MultiheadAttention: got shape {tuple(mask.shape)}, expected "
        f"{(length, source)} or {(rows * count, length, source)}. Give one for all rows, or one "
        "for each row and head."
    )


def _with_padding(mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return both masks as one that is added to the scores, or None for none."""
    both = [_additive(mask, dtype)] if mask is not None else []
    both += [_additive(padding, dtype)[:, None, None, :]] if padding is not None else []
    return both[0] if len(both) == 1 else both[0] + both[1] if both else None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to the scores: a boolean one marks positions to ignore."""
    if mask.is_floating_point():
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.bool(), float("-inf"))
