"""Add a recipe's new tokens to the tokenizer, the base's embeddings and the trained tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorakit.adapters.on_model.vocabulary import grow_vocabulary
from lorakit.config import LoraConfig, TaskType
from lorakit.errors import ConfigError, DataError
from lorakit.injection.selection.targets import name_matches
from lorakit.injection.selection.vocabulary import input_embedding, output_layer
from lorakit.injection.state import base_modules

if TYPE_CHECKING:
    from datasets import Dataset

    from lorakit.recipes.recipe import Recipe


def add_new_tokens(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> PreTrainedTokenizerBase:
    """Add a recipe's new tokens to a tokenizer, and return it.

    Raises:
        ConfigError: The tokenizer has one of them already.
    """
    words = recipe.data.new_tokens
    if not words:
        return tokenizer
    known = [word for word in words if word in tokenizer.get_vocab()]
    if known:
        raise ConfigError(
            f"Known tokens in data.new_tokens: got {known}, which the tokenizer of "
            f"'{recipe.model}' has already, expected strings it does not have. Leave them out; "
            "lora.trainable_token_indices trains tokens that exist."
        )
    any_tokenizer: Any = tokenizer
    any_tokenizer.add_tokens(list(words))
    return tokenizer


def new_token_ids(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> tuple[int, ...]:
    """Return the ids that a recipe's new tokens have in its tokenizer."""
    any_tokenizer: Any = tokenizer
    return tuple(any_tokenizer.convert_tokens_to_ids(list(recipe.data.new_tokens)))


def require_new_tokens_in_examples(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> None:
    """Refuse new tokens that no training example has: they would never be trained.

    Args:
        examples: The encoded training examples.
        tokenizer: The base's tokenizer, with the new tokens.
        recipe: The recipe.

    Raises:
        DataError: Names the tokens that are missing.
    """
    words = dict(zip(new_token_ids(tokenizer, recipe), recipe.data.new_tokens, strict=True))
    # Only labels of a sequence-to-sequence task are tokens that the inputs do not have.
    columns = ["input_ids", *(["labels"] if recipe.task is TaskType.SEQ_2_SEQ_LM else [])]
    for column in columns:
        for batch in examples.select_columns([column]).with_format("arrow").iter(batch_size=1000):
            if not words:
                return
            table: Any = batch
            ids = table.column(column).combine_chunks()
            while hasattr(ids, "flatten") and hasattr(ids.type, "value_type"):
                ids = ids.flatten()
            for token in ids.unique().to_pylist():
                words.pop(token, None)
    if words:
        raise DataError(
            f"No training example of '{recipe.data.train_name}' has {list(words.values())} of "
            "data.new_tokens, expected each of them at least once: a token that no example has is "
            "never trained. Add examples that have them, or leave them out."
        )


def grow_for_new_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    follows_the_old: bool = True,
) -> None:
    """Enlarge the embeddings for a recipe's new tokens, unless they have enough spare rows.

    Args:
        model: The base.
        tokenizer: Its tokenizer, with the new tokens.
        recipe: The recipe.
        follows_the_old: See `grow_vocabulary`.

    Raises:
        QuantizationError: An embedding or the output layer is quantized.
    """
    ids = new_token_ids(tokenizer, recipe)
    found = input_embedding(model, dict(base_modules(model)))
    if ids and found is not None and found[1].weight.shape[0] <= max(ids):  # type: ignore[union-attr,operator]  # an embedding
        grow_vocabulary(model, max(ids) + 1, follows_the_old=follows_the_old)


def add_new_tokens_to_config(
    config: LoraConfig, model: PreTrainedModel, ids: Sequence[int]
) -> LoraConfig:
    """Return a config that also trains the new tokens.

    They are trained in the input embedding, and in an output layer that is not tied to it. A module
    that is trained in full (`modules_to_save`) includes them already.

    Args:
        config: The recipe's config.
        model: The base, with embedding rows for the tokens.
        ids: Ids of the new tokens.
    """
    modules = dict(base_modules(model))
    ends = [found for f in (input_embedding, output_layer) if (found := f(model, modules))]
    weights = {id(module._parameters.get("weight")): None for _, module in ends}
    if not ids or not ends:
        return config
    is_tied = len(weights) < len(ends)
    wanted = config.trainable_token_indices or ()
    given = wanted if isinstance(wanted, dict) else {ends[0][0]: wanted} if wanted else {}
    indices = dict(given)
    for path, module in ends[: 1 if is_tied else None]:
        in_full = any(
            name_matches([n], path) or path.startswith(f"{n}.") for n in config.modules_to_save
        )
        if in_full or not isinstance(module, (nn.Embedding, nn.Linear)):
            continue
        name = next((name for name in given if name_matches([name], path)), path)
        indices[name] = tuple(dict.fromkeys((*given.get(name, ()), *ids)))
    if list(indices) == [ends[0][0]]:
        return config.model_copy(update={"trainable_token_indices": indices[ends[0][0]]})
    return config.model_copy(update={"trainable_token_indices": indices or None})
