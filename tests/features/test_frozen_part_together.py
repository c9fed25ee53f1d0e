"""Runs that train together, with what lies below their first adapted block from a cache."""

import pytest
from transformers import Phi3Config, Phi3ForCausalLM

from fixtures.data import write_jsonl
from fixtures.together import require_equal_runs
from lorakit.training import Recipe, train
from lorakit.training.frozen_part.store import HiddenStates
from lorakit.training.together import train_together
from lorakit.training.together.stacked_model import StackedModel

NF4 = {"bits": 4, "compute_dtype": "float32"}
WORDS = ["red", "green", "blue", "cat", "dog", "bird", "film", "story"]
PROMPTS = [
    {"prompt": f"what is {word}?", "completion": f" {other}" + " good" * (i % 4)}
    for i, word in enumerate(WORDS)
    for other in WORDS[i % 5 :: 3][:2]
]
UPPER, EVERY = {"layers_to_transform": [1]}, {}


TWICE = {"first": {}, "second": {}}
"""Groups of which the first has an empty cache and the second a full one."""


@pytest.fixture
def make(tiny_llama_dir, tmp_path):
    """Make a recipe: make(output, frozen, lora, training, **values)."""
    data = write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)

    def recipe(output, frozen=None, lora=UPPER, training=None, **values):
        settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "use_cpu": True}
        return Recipe.check(
            {
                "model": tiny_llama_dir,
                "task": "CAUSAL_LM",
                "data": {"train": data, "validation_fraction": 0.25},
                "lora": {"r": 2, "lora_dropout": 0.1, "target_modules": "all-linear", **lora},
                "frozen_part": {"cache_directory": str(tmp_path / "kept"), **(frozen or {})},
                "evaluation": {"compare_with_base": False},
                **values,
                "training": {**settings, "learning_rate": 2e-3, **(training or {})},
                "output": str(tmp_path / output),
            },
            "the test",
        )

    return recipe


@pytest.fixture
def kept(monkeypatch):
    """Return how many pieces each call has kept."""
    made, put = [], HiddenStates.put
    monkeypatch.setattr(
        HiddenStates, "put", lambda self, states: made.append(len(states)) or put(self, states)
    )
    return made


@pytest.fixture
def below(monkeypatch):
    """Return the depth of each pass of several runs, and the number of its runs."""
    seen, forward = [], StackedModel.forward

    def recording(self, passes, states):
        first = passes[0].below
        depth = 0 if first is None or first.states is None else first.blocks.depth
        seen.append((depth, len(passes)))
        return forward(self, passes, states)

    monkeypatch.setattr(StackedModel, "forward", recording)
    return seen


def together_and_alone(make, changes, groups=TWICE, **common):
    """Train runs alone without a cache, and together by each group's `frozen_part`."""
    off = {"frozen_part": {"cache_bytes": 0}}
    alone = [train(make(f"alone-{n}", **{**common, **off}, **c)) for n, c in enumerate(changes)]
    for name, frozen in groups.items():
        found = train_together(
            [make(f"{name}-{n}", frozen, **common, **each) for n, each in enumerate(changes)]
        )
        for ours, theirs in zip(found, alone, strict=True):
            if isinstance(ours, BaseException):
                raise ours
            require_equal_runs(ours, theirs)


@pytest.mark.parametrize("values", [{}, {"quantization": NF4}], ids=["float32", "4 bits"])
def test_runs_are_those_of_alone_and_take_the_frozen_part_from_the_cache(values, make, kept, below):
    changes = [{}, {"lora": {**UPPER, "r": 3}, "training": {"learning_rate": 4e-3}}]
    together_and_alone(make, changes, **values)
    assert {depth for depth, _ in below} == {1}
    assert (1, 2) in below, "both in one pass"
    assert sum(kept) == len(PROMPTS), "of two runs with the same order, each example once"


def test_runs_of_other_depths_are_other_passes(make, below):
    together_and_alone(make, [{}, {"lora": EVERY}, {"training": {"seed": 7}}])
    assert {(0, 1), (1, 2)} <= set(below) and (1, 3) not in below


def test_a_run_alone_reads_what_a_group_has_kept_and_a_group_what_a_run_has(make, kept):
    train(make("alone"))
    before = sum(kept)
    assert before == len(PROMPTS)
    train_together([make("a"), make("b", lora={**UPPER, "r": 4})])
    train(make("again"))
    assert sum(kept) == before


def test_batches_that_gain_nothing_by_stacking_take_it_from_the_cache_too(
    make, kept, below, monkeypatch
):
    from lorakit.training.together import shared_passes

    monkeypatch.setattr(shared_passes, "_GAINING_TOKENS", 12)
    together_and_alone(make, [{}, {"training": {"seed": 7}}])
    assert not below
    assert 0 < sum(kept) <= len(PROMPTS)


def test_packed_texts(make, kept):
    packed = {"packing": True}
    together_and_alone(make, [{"training": packed}, {"training": {**packed, "seed": 7}}])
    assert kept


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_head_and_the_dropout_of_its_base_which_is_off_below(kind, request, make, cls_csv):
    data = {"train": cls_csv, "validation_fraction": 0.25}
    model = request.getfixturevalue(f"tiny_{kind}_dir")
    changes = [{}, {"lora": {**UPPER, "r": 3}, "training": {"seed": 7}}]
    together_and_alone(
        *(make, changes, {"computed": {"cache_bytes": 0}, "kept": {}}),
        **{"model": model, "task": "SEQ_CLS", "data": data},
    )


LONG = " good" * 24


@pytest.fixture(scope="module")
def longrope_dir(tiny_llama_dir, tmp_path_factory):
    """A base that encodes all rows of a batch otherwise as soon as one has over 16 tokens."""
    import shutil

    import torch

    folder = tmp_path_factory.mktemp("longrope")
    shutil.copytree(tiny_llama_dir, folder, dirs_exist_ok=True)
    from transformers import AutoTokenizer

    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    scaling = {"rope_type": "longrope", "rope_theta": 10_000.0, "factor": 4.0}
    scaling |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 5.0, 9.0, 14.0]}
    scaling |= {"original_max_position_embeddings": 16}
    config = Phi3Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters=scaling,
        initializer_range=0.3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Phi3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("lora", [EVERY, UPPER], ids=["all layers", "the upper one"])
def test_short_rows_of_one_run_and_long_ones_of_another_with_longrope(
    lora, make, longrope_dir, tmp_path
):
    long = [{**row, "completion": row["completion"] + LONG} for row in PROMPTS]
    mixed = [row if n % 3 else long[n] for n, row in enumerate(PROMPTS)]
    changes = [
        {"lora": lora, "data": {"train": write_jsonl(tmp_path / f"{name}.jsonl", rows)}}
        for name, rows in (("short", PROMPTS), ("long", long), ("mixed", mixed))
    ]
    together_and_alone(make, changes, model=longrope_dir)
