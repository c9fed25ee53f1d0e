"""Every objective has TRL's loss and gradients on the same batch, with a PEFT model of the same
adapter."""

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from fixtures.tasks import make_recipe
from lorakit.adapters import save_adapter
from lorakit.injection import add_adapter
from lorakit.layers import LowRankUpdate

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and TRL call what is deprecated

THINGS = {"grass": "green", "sky": "blue", "sun": "yellow", "snow": "white very white"}
PAIRS = [
    {
        "prompt": f"what colour is the {thing}",
        "chosen": f" {colour}",
        "rejected": f" the {thing} is like a {word}",
    }
    for thing, colour in THINGS.items()
    for word in ("cat", "red dog")
]
VOTES = [
    {"prompt": row["prompt"], "completion": row[column], "label": column == "chosen"}
    for row in PAIRS
    for column in ("chosen", "rejected")
]
QUIET = {"report_to": [], "use_cpu": True, "bf16": False, "per_device_train_batch_size": 4}
QUIET |= {"gradient_checkpointing": False}


@pytest.fixture
def both(tmp_path, jsonl, tiny_llama_dir):
    """Return lorakit's trainer and the same model as PEFT's: both(objective, rows)."""

    def build(objective, rows, **lora):
        from peft import PeftModel

        from lorakit.data import load_splits
        from lorakit.training.tasks import Loaded, task_of

        is_reward = objective["type"] == "reward"
        recipe = make_recipe(
            "SEQ_CLS" if is_reward else "CAUSAL_LM",
            tiny_llama_dir,
            jsonl(rows),
            lora={"r": 4, "lora_alpha": 8, **lora},
            top={"objective": objective},
            validation_fraction=0,
        )
        task = task_of(recipe)
        splits = load_splits(recipe.data, 42)
        labels = task.labels(splits, recipe)
        tokenizer = task.load_tokenizer(recipe)
        model, plain = (task.load_base(recipe, tokenizer, labels) for _ in range(2))
        loaded = Loaded(recipe, tokenizer, labels, model)
        encoded = task.encode(splits, loaded)
        add_adapter(model, task.lora_config(loaded))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # an update that acts
            for module in model.modules():
                if isinstance(module, LowRankUpdate):
                    noise = torch.randn(module.lora_B.shape, generator=generator)
                    module.lora_B.copy_(noise * 0.1)
        save_adapter(model, tmp_path / "adapter")
        peft_model = PeftModel.from_pretrained(plain, tmp_path / "adapter", is_trainable=True)
        arguments = task.arguments_class()(
            output_dir=str(tmp_path / "ours"), **{**QUIET, "activation_checkpointing": False}
        )
        trainer = task.build_trainer(loaded, encoded, arguments, (), task.base_trainer_class)
        return trainer, peft_model, tokenizer, encoded

    return build


def gradients(model):
    """Return the gradients of the factors by path and factor."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            path = name.replace("base_model.model.", "").replace(".modules_to_save.default", "")
            for word in (".default", ".updates", ".weight", ".original_module", ".trained_copies"):
                path = path.replace(word, "")
            found[path] = parameter.grad
    return found


def compare(trainer, encoded, peft_model, theirs, numbers=(0, 3, 5, 6), shares=None):
    """Compare the loss and gradients on a batch of examples with those of TRL."""
    from dataclasses import replace

    if shares is not None:
        assert trainer.data_collator.shares_prompts  # a Llama can
        trainer.data_collator = replace(trainer.data_collator, shares_prompts=shares)
    batch = trainer.data_collator([encoded.train[number] for number in numbers])
    trainer.model.train()
    loss = trainer.step.share(trainer.model, batch).loss
    loss.backward()
    peft_model.train()
    expected = theirs()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    ours, others = gradients(trainer.model), gradients(peft_model)
    assert len(ours) > 4 and ours.keys() == others.keys()
    for path, gradient in ours.items():
        torch.testing.assert_close(gradient, others[path], rtol=1e-4, atol=1e-5, msg=path)


def parts_of(example):
    prompt, first, _ = example["parts"]
    ids = example["input_ids"]
    return ids[:prompt], ids[prompt : prompt + first], ids[prompt + first :]


DIRECT = [
    ({"type": "dpo", "beta": 0.3}, {"loss_type": ["sigmoid"]}),
    ({"type": "dpo", "beta": 0.5, "loss": "hinge"}, {"loss_type": ["hinge"]}),
    ({"type": "dpo", "beta": 2, "length_normalized": True}, {"loss_type": ["sigmoid_norm"]}),
    (
        {"type": "dpo", "beta": 0.3, "sft_weight": 0.5},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    ),
    ({"type": "ipo", "beta": 0.3}, {"loss_type": ["ipo"]}),
]


@pytest.mark.parametrize(("objective", "options"), DIRECT)
@pytest.mark.parametrize("shares", [True, False])
def test_dpo_and_ipo(both, tmp_path, objective, options, shares):
    trainer, peft_model, tokenizer, encoded = both(objective, PAIRS)
    settings = DPOConfig(output_dir=str(tmp_path), beta=objective["beta"], **options, **QUIET)
    oracle = DPOTrainer(
        peft_model, args=settings, train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )  # fmt: skip
    numbers = (0, 3, 5, 6)
    peft_model.delete_adapter("ref")  # the reference is the base, not the adapter so far
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, parts_of(encoded.train[n]), strict=True)) for n in numbers]
    batch = oracle.data_collator(rows)
    compare(
        *(trainer, encoded, peft_model),
        lambda: oracle.compute_loss(peft_model, batch),
        shares=shares,
    )


@pytest.mark.parametrize("shares", [True, False])
def test_orpo(both, tmp_path, shares):
    trainer, peft_model, tokenizer, encoded = both({"type": "orpo", "beta": 0.7}, PAIRS)
    settings = ORPOConfig(output_dir=str(tmp_path), beta=0.7, **QUIET)
    oracle = ORPOTrainer(
        peft_model, args=settings, train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )  # fmt: skip
    rows = []
    for number in (0, 3, 5, 6):
        prompt, chosen, rejected = parts_of(encoded.train[number])
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for name, answer in (("chosen", chosen), ("rejected", rejected)):
            row[f"{name}_input_ids"] = prompt + answer
            row[f"{name}_attention_mask"] = [1] * len(prompt + answer)
            row[f"{name}_labels"] = [-100] * len(prompt) + answer
        rows.append(row)
    batch = oracle.data_collator(rows)
    compare(
        *(trainer, encoded, peft_model),
        lambda: oracle.get_batch_loss_metrics(peft_model, batch)[0],
        shares=shares,
    )


@pytest.mark.parametrize("shares", [True, False])
def test_kto(both, tmp_path, shares):
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    trainer, peft_model, tokenizer, encoded = both({"type": "kto", "beta": 0.4, **weights}, VOTES)
    settings = KTOConfig(
        output_dir=str(tmp_path), beta=0.4, train_sampling_strategy="sequential", **weights, **QUIET
    )
    oracle = KTOTrainer(
        peft_model, args=settings, train_dataset=Dataset.from_list(VOTES),
        processing_class=tokenizer,
    )  # fmt: skip
    peft_model.delete_adapter("ref")
    names = ("prompt_ids", "completion_ids", "KL_completion_ids")
    numbers = (1, 4, 6, 11, 12)
    rows = [
        dict(zip(names, parts_of(example), strict=True), label=bool(example["votes"]))
        for example in (encoded.train[number] for number in numbers)
    ]
    batch = oracle.data_collator(rows)
    compare(
        *(trainer, encoded, peft_model),
        lambda: oracle.compute_loss(peft_model, batch),
        numbers=numbers,
        shares=shares,
    )


@pytest.mark.parametrize("center", [0.0, 0.2])
def test_reward(both, tmp_path, center):
    objective = {"type": "reward", "center_rewards": center}
    trainer, peft_model, tokenizer, encoded = both(objective, PAIRS)
    settings = RewardConfig(
        output_dir=str(tmp_path), center_rewards_coefficient=center or None, **QUIET
    )
    oracle = RewardTrainer(
        peft_model, args=settings, train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )  # fmt: skip
    rows = []
    for number in (0, 3, 5, 6):
        prompt, chosen, rejected = parts_of(encoded.train[number])
        rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected})
    batch = oracle.data_collator(rows)
    compare(*(trainer, encoded, peft_model), lambda: oracle.compute_loss(peft_model, dict(batch)))


def test_an_adapted_head_is_no_part_of_the_reference(both, tmp_path):
    # TRL reads lm_head's base weight, so it is no oracle here: plain logits are.
    trainer, peft_model, _, encoded = both(
        {"type": "dpo", "beta": 0.3}, PAIRS, target_modules=["lm_head", "q_proj"]
    )
    batch = trainer.data_collator([encoded.train[number] for number in (0, 3)])
    trainer.model.train()
    share = trainer.step.share(trainer.model, batch)
    share.loss.backward()

    def log_probs(model):
        sums = []
        for number in (0, 3):
            prompt, *answers = parts_of(encoded.train[number])
            for answer in answers:
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
                picked = logits.log_softmax(-1)[len(prompt) - 1 : -1]
                sums.append(picked.gather(1, torch.tensor(answer)[:, None]).sum())
        return torch.stack(sums).view(2, 2)

    with peft_model.disable_adapter(), torch.no_grad():
        reference = log_probs(peft_model)
    ratios = log_probs(peft_model) - reference
    expected = -torch.nn.functional.logsigmoid(0.3 * (ratios[:, 0] - ratios[:, 1])).mean()
    expected.backward()
    torch.testing.assert_close(share.loss, expected, rtol=1e-5, atol=1e-5)
    ours, others = gradients(trainer.model), gradients(peft_model)
    assert "lm_head.lora_A" in ours and ours.keys() == others.keys()
    for path, gradient in ours.items():
        torch.testing.assert_close(gradient, others[path], rtol=1e-4, atol=1e-5, msg=path)
