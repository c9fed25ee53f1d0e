"""A run that starts from the adapter of another: exact, resized, resumed, planned, inspected."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from fixtures.data import write_jsonl
from fixtures.runs import SHORT, adapter_bytes
from lorakit.adapters import Adapter
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.cli.main import app
from lorakit.errors import AdapterMismatchError, ConfigError, DataError, LorakitError
from lorakit.inference import load_for_inference
from lorakit.planning import plan
from lorakit.training import Recipe, evaluate, train
from lorakit.training.preview import dry_run
from lorakit.training.setup import prepare

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def ignore(name, payload):
    """Ignore an event."""


@pytest.fixture
def second(done, recipe):
    """Make a recipe that starts from `done`, without a lora section unless one is given."""

    def make(output="second", **changes):
        made = recipe(output, **changes)
        values = made.model_dump(mode="json")
        if "lora" not in changes:
            del values["lora"]
        start = str(done[0].run_dir)
        return Recipe.check({**values, "start_from": start, **changes}, "the recipe")

    return make


def logits_of(model):
    ids = torch.arange(5, 17).view(2, 6)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_training_starts_at_the_parents_outputs_with_its_configuration(done, second):
    setup = prepare(second(), ignore)
    parent = load_for_inference(done[0].run_dir)
    assert torch.equal(logits_of(setup.model), logits_of(parent.model))
    config = setup.injection.config
    assert (config.r, config.lora_dropout, config.task_type) == (2, 0.1, "CAUSAL_LM")
    assert setup.recipe.lora.target_modules == ("q_proj", "v_proj")
    assert any(parameter.requires_grad for parameter in setup.model.parameters())
    note = setup.injection.notes[0]
    assert note.startswith(f"Training starts from the adapter of {done[0].run_dir} (sha256 ")
    assert note in setup.injection.table()


@pytest.mark.parametrize("r", [1, 4])
def test_another_rank_resizes_the_update_and_keeps_its_scaling(done, second, r):
    setup = prepare(second(lora={"r": r}), ignore)
    parent = Adapter.load(done[0].adapter_path)
    made = Adapter.from_model(setup.model)
    assert {A.shape[0] for A, _ in made.factors.values()} == {r}
    assert made.config.scaling_for("x.q_proj") == parent.config.scaling_for("x.q_proj")
    notes = " ".join(setup.injection.notes)
    assert f"Its rank is changed from 2 to {r}" in notes
    assert ("which loses" in notes) == (r == 1)
    for path in parent.factors:
        new, old = made.delta_weight(path), parent.delta_weight(path)
        if r == 4:
            assert torch.allclose(new, old, atol=1e-6)
        else:  # the best approximation of rank 1
            values = torch.linalg.svdvals(old)
            assert torch.linalg.norm(new - old).item() == pytest.approx(values[1].item(), rel=1e-3)


def test_another_alpha_is_made_up_for(done, second):
    setup = prepare(second(lora={"lora_alpha": 32, "lora_dropout": 0.5}), ignore)
    parent = Adapter.load(done[0].adapter_path)
    made = Adapter.from_model(setup.model)
    assert made.config.lora_alpha == 32 and setup.injection.config.lora_dropout == 0.5
    for path in parent.factors:
        assert torch.allclose(made.delta_weight(path), parent.delta_weight(path), atol=1e-7)


def test_a_second_round_is_read_by_peft_and_names_its_parents(done, second):
    result = train(second())
    settings = InferenceSettings.load(result.adapter_path)
    parent = InferenceSettings.load(done[0].adapter_path)
    assert parent.lineage.parents == ()
    (first,) = settings.lineage.parents
    assert first.name == str(done[0].run_dir) and first.data == parent.lineage.data
    assert settings.lineage.base_digest == parent.lineage.base_digest is not None
    assert f"starting from the adapter `{done[0].run_dir}`." in result.files[1].read_text()

    third = train(second("third", start_from=str(result.run_dir)))
    parents = InferenceSettings.load(third.adapter_path).lineage.parents
    assert [one.name for one in parents] == [str(result.run_dir), str(done[0].run_dir)]
    shown = CliRunner().invoke(app, ["inspect", str(third.run_dir)], env={"COLUMNS": "300"}).output
    assert "Lineage" in shown and first.sha256 in shown and done[0].run_dir.name in shown

    base = AutoModelForCausalLM.from_pretrained(second().model)
    with_peft = peft.PeftModel.from_pretrained(base, third.adapter_path)
    ours = load_for_inference(third.run_dir)
    assert torch.allclose(logits_of(with_peft), logits_of(ours.model), atol=1e-5)
    assert evaluate(third.run_dir)["eval_loss"] == pytest.approx(third.metrics["eval_loss"])


SAVING = {
    "training": {
        **{"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"},
        "load_best_model_at_end": False,
    }
}


def test_a_resumed_run_needs_no_parent_and_ends_with_the_same_bits(
    done, second, stop_after, tmp_path
):
    parent = tmp_path / "parent"
    shutil.copytree(done[0].adapter_path, parent)
    start = {"start_from": str(parent), "lora": {"r": 4}}
    whole = train(second("whole", **start, **SAVING))
    with stop_after(3):
        train(second("cut", **start, **SAVING))
    shutil.rmtree(parent)
    notes = []
    resumed = train(
        second("cut", **start, **SAVING),
        resume=True,
        on_event=lambda name, payload: name == "run_opened" and notes.append(payload["note"]),
    )
    assert adapter_bytes(resumed) == adapter_bytes(whole)
    assert notes == [f"start_from '{parent}' no longer exists; the run has a copy of it."]
    settings = [InferenceSettings.load(one.adapter_path) for one in (whole, resumed)]
    assert settings[0] == settings[1]


def test_a_changed_parent_is_noticed_and_not_used(done, second, stop_after, tmp_path):
    parent = tmp_path / "parent"
    shutil.copytree(done[0].adapter_path, parent)
    start = {"start_from": str(parent)}
    whole = train(second("whole", **start, **SAVING))
    with stop_after(3):
        train(second("cut", **start, **SAVING))
    adapter = Adapter.load(parent)
    for _, B in adapter.factors.values():
        B.zero_()
    adapter.save(parent)
    shutil.rmtree(tmp_path / "cut" / "checkpoint-2")
    notes = []
    resumed = train(
        second("cut", **start, **SAVING),
        resume=True,
        on_event=lambda name, payload: name == "run_opened" and notes.append(payload["note"]),
    )
    assert adapter_bytes(resumed) == adapter_bytes(whole)
    assert "has changed since the run started; the run goes on from its copy" in notes[0]


def test_plan_and_dry_run_show_the_resized_adapter(done, second):
    made = second(lora={"r": 4})
    dry = dry_run(made)
    assert {match.r for match in dry.injection.matches} == {4}
    assert "Training starts from" in dry.injection.notes[0]
    planned = plan(made, device="cpu")
    assert planned.trainable == dry.parameter_count.trainable
    assert planned.trainable == 2 * plan(second(), device="cpu").trainable


def test_contradictions_are_named_together(second):
    with pytest.raises(ConfigError) as caught:
        prepare(second(lora={"use_dora": True, "init_lora_weights": "pissa"}), ignore)
    assert "got lora.init_lora_weights='pissa', lora.use_dora=True, expected" in str(caught.value)
    assert "Leave these keys out, or train a new adapter." in str(caught.value)
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.down_proj.* does not have"):
        prepare(second(lora={"target_modules": "all-linear"}), ignore)
    again = {"target_modules": r".*\.self_attn\.[qv]_proj"}  # the same in other words
    assert len(prepare(second(lora=again), ignore).injection.matches) == 4


def test_the_base_must_be_that_of_the_parent(done, second, tiny_llama_dir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_llama_dir, other)
    same = prepare(second(model=str(other)), ignore)
    assert len(same.injection.notes) == 1  # a copy is the same base
    weights = load_file(other / "model.safetensors")
    some = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[some][0, 0] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    for fails in (lambda made: prepare(made, ignore), lambda made: plan(made, device="cpu")):
        with pytest.raises(AdapterMismatchError, match="was trained on other weights than those"):
            fails(second(model=str(other)))

    settings = InferenceSettings.load(done[0].adapter_path)
    unknown = tmp_path / "unknown"
    shutil.copytree(done[0].adapter_path, unknown)
    settings.model_copy(update={"lineage": None}).save(unknown)
    setup = prepare(second(model=str(other), start_from=str(unknown)), ignore)
    assert "whether their weights are is not recorded" in setup.injection.notes[1]


def test_a_base_of_other_shapes_is_refused_with_both_shapes(second, tmp_path, tiny_llama_dir):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny_llama_dir)
    config.hidden_size *= 2
    config.head_dim *= 2
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(tmp_path / "wide")
    for fails in (lambda made: prepare(made, ignore), lambda made: plan(made, device="cpu")):
        with pytest.raises(AdapterMismatchError) as caught:
            fails(second(model=str(tmp_path / "wide")))
        assert "does not fit model" in str(caught.value) and tiny_llama_dir in str(caught.value)
        assert "lora_A has shape (2, " in str(caught.value)


def test_what_is_no_adapter_or_for_another_task_is_refused(second, tmp_path, done, recipe_of):
    with pytest.raises(LorakitError, match="Cannot start from start_from '/nowhere/x': No adapter"):
        prepare(second(start_from="/nowhere/x"), ignore)
    start = {"start_from": str(done[0].run_dir)}
    made = recipe_of("SEQ_CLS", second().model, "x.csv", top=start)
    with pytest.raises(ConfigError, match="is for another task: got CAUSAL_LM, expected SEQ_CLS"):
        prepare(made, ignore)


@pytest.fixture(scope="module")
def classifier(tiny_distilbert_dir, tmp_path_factory):
    """A run of a text classifier with three labels, its data and its base."""
    folder = tmp_path_factory.mktemp("classifier")
    rows = [{"text": f"word {n % 3} again", "label": "cba"[n % 3]} for n in range(24)]
    data = write_jsonl(folder / "rows.jsonl", rows)
    training = {**SHORT, "eval_strategy": "no", "load_best_model_at_end": False}
    values = {
        "model": tiny_distilbert_dir,
        "task": "SEQ_CLS",
        "data": {"train": data, "validation_fraction": 0.25},
        "lora": {"r": 2, "use_dora": True, "use_rslora": True, "rank_pattern": {"q_lin": 3}},
        "training": training,
        "output": str(folder / "first"),
    }
    return train(Recipe.check(values, "the recipe")), values, folder


def test_a_classifier_keeps_labels_head_and_variants(classifier):
    result, values, folder = classifier
    rows = [{"text": f"word {n % 2} again", "label": "ca"[n % 2]} for n in range(16)]
    few = write_jsonl(folder / "few.jsonl", rows)
    again = {**values, "start_from": str(result.run_dir), "output": str(folder / "second")}
    again["data"] = {"train": few, "validation_fraction": 0.25}
    del again["lora"]
    setup = prepare(Recipe.check(again, "the recipe"), ignore)
    assert setup.labels == ("a", "b", "c")
    assert not any("New weights" in note for note in setup.encoded.notes)
    parent, made = Adapter.load(result.adapter_path), Adapter.from_model(setup.model)
    assert made.config.use_dora and made.config.use_rslora
    assert all(
        torch.equal(tensor, getattr(made, kind)[key])
        for kind in ("replaced", "companions")
        for key, tensor in getattr(parent, kind).items()
    )
    other = [*rows, {"text": "new", "label": "d"}, {"text": "new", "label": "d"}]
    again["data"] = {"train": write_jsonl(folder / "other.jsonl", other)}
    with pytest.raises(DataError, match="not trained on: got d, expected a, b, c"):
        prepare(Recipe.check(again, "the recipe"), ignore)
    again["data"] = {"train": few}
    with pytest.raises(ConfigError, match=r"Cannot resize the adapter: got use_dora=True"):
        prepare(Recipe.check({**again, "lora": {"r": 1}}, "the recipe"), ignore)
    known = [{"text": "word 1 again", "label": "b"}]  # of the first round alone
    again["data"] = {"train": few, "validation": write_jsonl(folder / "known.jsonl", known)}
    result = train(Recipe.check(again, "the recipe"))
    assert InferenceSettings.load(result.adapter_path).labels == ("a", "b", "c")
    unknown = [{"text": "new", "label": "d"}]
    again["data"]["validation"] = write_jsonl(folder / "unknown.jsonl", unknown)
    with pytest.raises(DataError, match="Labels unseen in training"):
        prepare(Recipe.check(again, "the recipe"), ignore)


def test_a_head_without_names_is_refused(classifier, tmp_path):
    result, values, _ = classifier
    shutil.copytree(result.adapter_path, tmp_path / "unnamed")
    (tmp_path / "unnamed" / "lorakit.json").unlink()
    again = {**values, "start_from": str(tmp_path / "unnamed")}
    del again["lora"]
    with pytest.raises(ConfigError, match="does not say which output is which class"):
        prepare(Recipe.check(again, "the recipe"), ignore)


def test_new_tokens_and_the_template_are_the_parents(recipe, second, tmp_path):
    rows = [{"prompt": f"<call> {n}", "completion": "yes"} for n in range(8)]
    data = {"train": write_jsonl(tmp_path / "calls.jsonl", rows), "validation_fraction": 0.25}
    words = {"new_tokens": ["<call>"]}
    first = train(recipe("first", data={**data, **words}))
    file = first.adapter_path / "chat_template.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    start = {"start_from": str(first.run_dir)}
    for more in ({}, words):
        setup = prepare(second("x", data={**data, **more}, **start), ignore)
        assert setup.tokenizer.convert_tokens_to_ids("<call>") == len(setup.tokenizer) - 1
        assert setup.tokenizer.chat_template == file.read_text()
        loaded = load_for_inference(first.run_dir)
        assert torch.equal(logits_of(setup.model), logits_of(loaded.model))
    made = second("x", data=data, lora={"r": 4}, **start)  # tokens do not depend on the rank
    assert plan(made, device="cpu").trainable == dry_run(made).parameter_count.trainable
    with pytest.raises(ConfigError, match=r"got \['<more>'\], which the adapter of start_from"):
        prepare(second("x", data={**data, "new_tokens": ["<call>", "<more>"]}, **start), ignore)
    second_run = train(second("again", data=data, **start))
    assert "<call>" in AutoTokenizer.from_pretrained(second_run.adapter_path).get_vocab()
    assert evaluate(second_run.run_dir)["eval_loss"] > 0


def test_factors_of_pissa_are_trained_on_in_their_portable_form(recipe, second):
    pissa = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": "pissa"}
    first = train(recipe("first", lora=pissa))
    start = {"start_from": str(first.run_dir)}
    setup = prepare(second("x", **start), ignore)
    assert {match.r for match in setup.injection.matches} == {4}  # B A - B0 A0
    loaded = load_for_inference(first.run_dir)
    assert torch.equal(logits_of(setup.model), logits_of(loaded.model))
    with pytest.raises(ConfigError, match=r"got lora\.init_lora_weights='pissa', expected"):
        prepare(second("x", lora=pissa, **start), ignore)


def test_the_precision_of_the_base_is_compared(done, second, tmp_path):
    parent = tmp_path / "parent"
    shutil.copytree(done[0].adapter_path, parent)
    values = json.loads((parent / "lorakit.json").read_text())
    del values["dtype"]
    (parent / "lorakit.json").write_text(json.dumps({**values, "quantization": {"bits": 8}}))
    setup = prepare(second(start_from=str(parent)), ignore)
    assert setup.injection.notes[1] == (
        "The adapter was trained on a base in 8 bits (int8), and is trained on here with one in "
        "the precision of its checkpoint."
    )


def test_the_reference_of_a_preference_loss_is_the_parent(done, second):
    setup = prepare(second(), ignore)
    before = Adapter.from_model(setup.model)
    setup.start.attach(setup.model, setup.recipe, "reference", trainable=False)
    reference = Adapter.from_model(setup.model, "reference")
    for path, pair in before.factors.items():
        assert all(map(torch.equal, pair, reference.factors[path]))


def test_a_file_of_pefts_pissa_is_trained_on_in_its_form(second, tmp_path, tiny_llama_dir):
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    theirs = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1.5)
    theirs.save_pretrained(tmp_path / "theirs")
    made = second("x", start_from=str(tmp_path / "theirs"), training={"max_steps": 2})
    setup = prepare(made, ignore)
    assert torch.allclose(logits_of(setup.model), logits_of(theirs), atol=1e-4)
    assert plan(made, device="cpu").trainable == dry_run(made).parameter_count.trainable
    with pytest.raises(ConfigError, match="with which the update depends on the base"):
        prepare(second("x", start_from=made.start_from, lora={"r": 1}), ignore)
    result = train(made)
    assert Adapter.load(result.adapter_path).config.r == 4  # B A - B0 A0
