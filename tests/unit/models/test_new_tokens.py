"""`data.new_tokens`: the tokenizer, the base's embeddings, and what is trained."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorakit import Adapter, LoraConfig, add_adapter
from lorakit.errors import ConfigError, DataError
from lorakit.inference import load_for_inference
from lorakit.injection.selection.vocabulary import input_embedding
from lorakit.injection.state import base_modules
from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.models.new_tokens import add_new_tokens_to_config
from lorakit.planning import plan
from lorakit.planning.measurement import count_step
from lorakit.training import Recipe, train
from lorakit.training.shared_base import load_shared_base
from lorakit.training.tasks import task_for
from tiny_models import gpt2, llama
from tolerances import LOGITS_TOLERANCE, largest_error

# For each task strings of its rows that its tokenizer splits.
PLACES = {
    "CAUSAL_LM": ("tiny_llama_dir", "prompt_jsonl", ["colour is the"]),
    "SEQ_CLS": ("tiny_distilbert_dir", "cls_csv", ["was great", "was bad"]),
    "TOKEN_CLS": ("tiny_bert_dir", "ner_jsonl", ["Anna"]),
    "SEQ_2_SEQ_LM": ("tiny_t5_dir", "summary_parquet", ["cat on"]),
}


@pytest.fixture
def recipe_with(request, tmp_path):
    """Makes a recipe of a task with new tokens."""

    def make(task="CAUSAL_LM", data=None, training=None, **values):
        model, rows, words = PLACES[task]
        return Recipe.check(
            {
                "model": request.getfixturevalue(model),
                "task": task,
                "data": {
                    "train": request.getfixturevalue(rows),
                    "validation_fraction": 0.25,
                    "new_tokens": words,
                    **(data or {}),
                },
                "lora": {"r": 2},
                "training": {
                    "max_steps": 3,
                    "use_cpu": True,
                    "learning_rate": 0.05,
                    "per_device_train_batch_size": 8,
                    **(training or {}),
                },
                "output": str(tmp_path / "run"),
                **values,
            },
            "the test",
        )

    return make


def base_of(recipe, **changes):
    task = task_for(recipe.task)
    tokenizer = task.load_tokenizer(recipe)
    labels = ("a", "b") if recipe.task in ("SEQ_CLS", "TOKEN_CLS") else None
    return tokenizer, task.load_base(recipe, tokenizer, labels), task


@pytest.mark.parametrize("task", PLACES)
def test_every_task_trains_the_rows_and_uses_them(task, recipe_with):
    recipe = recipe_with(task)
    words = PLACES[task][2]
    result = train(recipe)
    adapter = Adapter.load(result.adapter_path)
    tokenizer, base, _ = base_of(recipe)
    ids = tokenizer.convert_tokens_to_ids(words)
    path, embedding = input_embedding(base, dict(base_modules(base)))
    assert adapter.trained_tokens[path].shape == (len(words), embedding.weight.shape[1])
    fresh = embedding.weight[torch.tensor(ids)]
    assert ((adapter.trained_tokens[path] - fresh).abs().amax(1) > 1e-3).all(), "it was not trained"

    loaded = load_for_inference(result.run_dir, device="cpu")
    assert loaded.tokenizer.convert_tokens_to_ids(words) == ids
    ours = loaded.model.get_input_embeddings()
    assert ours.weight.shape[0] == max(ids) + 1 == loaded.model.config.vocab_size
    acting = loaded.model.get_submodule("encoder.embed_tokens") if "S2" in task else ours
    with torch.no_grad():
        assert torch.equal(acting(torch.tensor(ids)), adapter.trained_tokens[path])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_keeps_its_embeddings_dense(bits, recipe_with):
    how = {"bits": bits, "compute_dtype": "float32"}
    result = train(recipe_with(quantization=how))
    loaded = load_for_inference(result.run_dir, device="cpu")
    assert bits_of(loaded.model.model.layers[0].self_attn.q_proj) == bits
    assert (
        len(Adapter.load(result.adapter_path).trained_tokens) == 2
    )  # the output layer has its own
    assert loaded.model.lm_head.weight.shape[0] == len(loaded.tokenizer)


def test_new_rows_do_not_depend_on_the_seed_and_old_ones_stay(recipe_with, tiny_llama_dir):
    models = [base_of(recipe_with(training={"seed": seed}))[1] for seed in (1, 2)]
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    for end in ("get_input_embeddings", "get_output_embeddings"):
        one, other, old = (getattr(m, end)().weight for m in (*models, plain))
        assert torch.equal(one, other)
        assert torch.equal(one[: len(old)], old)
        assert one[len(old) :].isfinite().all()


def test_a_shared_base_has_the_new_rows(recipe_with, tmp_path):
    recipe = recipe_with()
    tokenizer, loaded, task = base_of(recipe)
    mapped = load_shared_base(tmp_path / "shared", recipe, task, tokenizer, None)
    assert torch.equal(mapped.get_input_embeddings().weight, loaded.get_input_embeddings().weight)
    plain = recipe_with(data={"new_tokens": []})
    other = load_shared_base(tmp_path / "shared", plain, task, task.load_tokenizer(plain), None)
    assert len(other.get_input_embeddings().weight) == len(loaded.get_input_embeddings().weight) - 1


@pytest.mark.parametrize("task", PLACES)
def test_a_plan_counts_the_rows(task, recipe_with):
    recipe = recipe_with(task)
    planned, counted = plan(recipe, device="cpu"), count_step(recipe)
    assert planned.adapter_bytes == counted.adapter_bytes
    assert planned.optimizer_bytes == counted.optimizer_bytes
    assert planned.base_weights_bytes == pytest.approx(counted.base_weights_bytes, rel=1e-3)
    assert planned.peak_bytes == pytest.approx(counted.peak_bytes, rel=0.1)


class TestWhatIsTrained:
    def config_of(self, model, ids=(30, 31), **options):
        return add_new_tokens_to_config(LoraConfig(**options), model, ids).trainable_token_indices

    def test_a_tied_model_has_them_once(self):
        assert self.config_of(gpt2()) == (30, 31)

    def test_an_untied_output_layer_has_its_own(self):
        assert self.config_of(llama()) == {"model.embed_tokens": (30, 31), "lm_head": (30, 31)}

    def test_a_classifier_has_those_of_the_embedding(self):
        assert self.config_of(gpt2("GPT2ForSequenceClassification")) == (30, 31)

    def test_tokens_that_were_asked_for_are_kept(self):
        assert self.config_of(gpt2(), trainable_token_indices=[5, 30]) == (5, 30, 31)
        named = self.config_of(llama(), trainable_token_indices={"embed_tokens": [5]})
        assert named == {"embed_tokens": (5, 30, 31), "lm_head": (30, 31)}

    def test_what_is_trained_in_full_has_them_already(self):
        assert self.config_of(llama(), modules_to_save=["lm_head"]) == (30, 31)
        full = self.config_of(llama(), modules_to_save=["embed_tokens"])
        assert full == {"lm_head": (30, 31)}
        assert self.config_of(llama(), modules_to_save=["embed_tokens", "lm_head"]) is None

    def test_no_new_tokens_change_nothing(self):
        assert self.config_of(llama(), ids=()) is None
        assert self.config_of(llama(), ids=(), trainable_token_indices=[5]) == (5,)


def test_spare_rows_are_used_before_the_base_grows(tiny_llama_dir, prompt_jsonl, recipe_with):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    rows = model.get_input_embeddings().weight.shape[0]
    recipe = recipe_with()
    folder = str(recipe.output) + "-base"
    model.resize_token_embeddings(rows + 8)
    model.save_pretrained(folder)
    task_for("CAUSAL_LM").load_tokenizer(recipe_with(data={"new_tokens": []})).save_pretrained(
        folder
    )
    _, base, _ = base_of(recipe_with(model=folder))
    assert base.get_input_embeddings().weight.shape[0] == rows + 8


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["<a>", "<a>"], r"new_tokens: .*each string once, not \['<a>'\] twice"),
            ([""], "new_tokens: .*without spaces"),
            ([" <a>"], "new_tokens: .*without spaces"),
            ("<a>", "new_tokens"),
        ],
    )
    def test_of_the_recipe(self, words, message, recipe_with):
        with pytest.raises(ConfigError, match=message):
            recipe_with(data={"new_tokens": words})

    @pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
    def test_a_known_token(self, task, recipe_with):
        with pytest.raises(ConfigError, match=r"data.new_tokens: got \['the'\].*already"):
            base_of(recipe_with(task, data={"new_tokens": ["the"]}))

    @pytest.mark.parametrize("task", PLACES)
    def test_tokens_that_are_in_no_row(self, task, recipe_with, tmp_path):
        words = [*PLACES[task][2], "<call>", "<back>"]
        with pytest.raises(DataError, match=r"has \['<call>', '<back>'\] of data.new_tokens"):
            train(recipe_with(task, data={"new_tokens": words}))
        assert not (tmp_path / "run").exists()

    def test_of_a_sequence_to_sequence_task_those_of_the_targets_count(self, recipe_with):
        recipe = recipe_with("SEQ_2_SEQ_LM", data={"new_tokens": ["a cat", "bird on"]})
        assert train(recipe).steps == 3


def test_the_loaded_model_gives_the_trained_one_s_logits(recipe_with):
    """The rows of both ends and the factors: what training ended with is what is loaded."""
    result = train(recipe_with())
    one = load_for_inference(result.run_dir, device="cpu")
    recipe = recipe_with()
    _, base, _ = base_of(recipe)
    add_adapter(base, Adapter.load(result.adapter_path))
    ids = torch.tensor([[3, 4, base.config.vocab_size - 1, 5]])
    with torch.no_grad():
        got, expected = one.model(input_ids=ids).logits, base.eval()(input_ids=ids).logits
    assert largest_error(got, expected) < LOGITS_TOLERANCE
