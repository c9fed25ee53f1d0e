"""Batches of like length in a trainer: their order, the padding that is left, and the note."""

import json
from collections import Counter
from itertools import chain, islice
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainingArguments,
    set_seed,
)

from lorakit.config import LoraConfig
from lorakit.data.stream import EncodedStream, ExampleStream
from lorakit.injection import add_adapter
from lorakit.recipes.data_section import DataConfig
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.batching import (
    BatchingMixin,
    padding_notes,
    padding_to_multiples,
)
from lorakit.training.trainers.step_trainer import ClassifierTrainer

EXAMPLES = 93


class RecordingTrainer(AdapterTrainerMixin, ClassifierTrainer):
    """Records the lengths of each step's batches."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def get_batch_samples(self, *args, **kwargs):
        batches, counted = super().get_batch_samples(*args, **kwargs)
        self.seen.append([batch["attention_mask"].sum(-1).tolist() for batch in batches])
        return batches, counted


def examples(lengths):
    """Examples whose label is the parity of their length."""
    rows = [[5 + length % 30] * length for length in lengths]
    masks = [[1] * length for length in lengths]
    labels = [length % 2 for length in lengths]
    return Dataset.from_dict({"input_ids": rows, "attention_mask": masks, "labels": labels})


@pytest.fixture(scope="module")
def data():
    lengths = torch.randint(1, 60, (EXAMPLES,), generator=torch.Generator().manual_seed(1))
    return examples(lengths.tolist())


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    padded = {
        key: torch.tensor([row[key] + [0] * (width - len(row[key])) for row in rows])
        for key in ("input_ids", "attention_mask")
    }
    return {**padded, "labels": torch.tensor([row["labels"] for row in rows])}


@pytest.fixture
def build(tiny_bert_dir, tmp_path, data):
    def make(data_collator=collate, **options):
        set_seed(3)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2)
        add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS"))
        return RecordingTrainer(
            model=model,
            args=arguments(tmp_path, **options),
            train_dataset=data,
            eval_dataset=data,
            data_collator=data_collator,
        )

    return make


def arguments(folder, **options):
    made = TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": "none",
            "per_device_train_batch_size": 3,
            "per_device_eval_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 2,
            "save_strategy": "no",
            "train_sampling_strategy": "group_by_length",
            **options,
        }
    )
    made.lora_plus_ratio = None
    return made


def flat(steps):
    return [length for batches in steps for batch in batches for length in batch]


def test_each_epoch_has_all_examples_in_another_order_and_the_throughput_is_of_all(build, data):
    trainer = build()
    trainer.train()
    steps = -(-EXAMPLES // 6)
    first, second = trainer.seen[:steps], trainer.seen[steps:]
    expected = Counter(map(len, data["input_ids"]))
    assert Counter(flat(first)) == Counter(flat(second)) == expected
    assert first != second
    assert max(flat(first)) in first[0][0]  # the longest comes first
    widths = [max(batch) * len(batch) for step in trainer.seen for batch in step]
    real = sum(flat(trainer.seen))
    assert trainer.throughput.tokens == real
    assert trainer.throughput.padding_share == pytest.approx(1 - real / sum(widths))
    assert trainer.throughput.tokens_per_s > 0
    summary = trainer.state.log_history[-1]
    assert summary["train_tokens"] == real


def test_accumulated_and_whole_batches_have_the_same_order(build):
    once = {"num_train_epochs": 1}
    whole = build(per_device_train_batch_size=6, gradient_accumulation_steps=1, **once)
    halves = build(**once)
    for trainer in (whole, halves):
        trainer.train()
    assert flat(whole.seen) == flat(halves.seen)


def test_there_is_less_padding_than_in_random_batches(build):
    shares = {}
    for strategy in ("random", "group_by_length"):
        trainer = build(train_sampling_strategy=strategy, num_train_epochs=1)
        trainer.train()
        shares[strategy] = trainer.throughput.padding_share
    assert shares["group_by_length"] < 0.6 * shares["random"]


def test_evaluation_pads_less_and_means_the_same(build):
    grouped, plain = build(), build(train_sampling_strategy="sequential")
    loss, expected = (trainer.evaluate()["eval_loss"] for trainer in (grouped, plain))
    assert loss == pytest.approx(expected, abs=1e-5)
    lengths = [batch["attention_mask"].sum(-1).tolist() for batch in grouped.get_eval_dataloader()]
    assert flat([lengths]) == sorted(flat([lengths]), reverse=True)


def test_no_validation_example_is_left_out(build, data):
    """transformers leaves out incomplete batches there too; if all are, it ends in a KeyError."""
    trainer = build(dataloader_drop_last=True)
    assert sum(len(batch["labels"]) for batch in trainer.get_eval_dataloader()) == len(data)
    few = data.select(range(3))
    assert trainer.evaluate(few)["eval_loss"] > 0
    assert len(trainer.predict(few).label_ids) == 3
    assert trainer.args.dataloader_drop_last
    per_step = trainer.args.train_batch_size
    assert all(len(batch["labels"]) == per_step for batch in trainer.get_train_dataloader())


def test_predictions_have_the_order_of_the_examples(build, data):
    output = build().predict(data)
    assert output.label_ids.tolist() == data["labels"][:]


def test_the_note_says_both_shares(tmp_path, data):
    (note,) = padding_notes(data, arguments(tmp_path))
    assert note.startswith("Padding: ") and "these batches of like length" in note
    (note,) = padding_notes(data, arguments(tmp_path, train_sampling_strategy="random"))
    assert "training.train_sampling_strategy=group_by_length would make it" in note
    assert not padding_notes(data, arguments(tmp_path, per_device_train_batch_size=1))
    assert not padding_notes(examples([7] * 20), arguments(tmp_path))


def test_the_note_is_what_an_epoch_measures(build, tmp_path, data):
    trainer = build(num_train_epochs=1)
    trainer.train()
    (note,) = padding_notes(data, trainer.args)
    assert f"{trainer.throughput.padding_share:.0%} in these batches" in note


def test_in_bfloat16_on_a_cpu_lengths_are_few_and_results_the_same(build, data, tiny_bert_dir):
    collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(tiny_bert_dir))
    in_float32, in_bfloat16 = build(collator), build(collator, bf16=True)
    assert in_float32.data_collator is collator
    asked = build(DataCollatorWithPadding(collator.tokenizer, pad_to_multiple_of=1), bf16=True)
    widths = {batch["input_ids"].shape[1] for batch in in_bfloat16.get_train_dataloader()}
    assert widths == {32, 64}
    assert len({batch["input_ids"].shape[1] for batch in asked.get_train_dataloader()}) > 9
    losses = [trainer.evaluate()["eval_loss"] for trainer in (in_bfloat16, asked)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_the_note_says_what_lengths_are_padded_to(build, data, tiny_bert_dir):
    collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(tiny_bert_dir))
    trainer = build(collator, bf16=True, num_train_epochs=1)
    trainer.train()
    first, second = padding_notes(data, trainer.args, trainer.data_collator.pad_to_multiple_of)
    assert first.startswith("Batches are padded to multiples of 32 tokens: ")
    assert f"{trainer.throughput.padding_share:.0%} in these batches" in second
    assert len(padding_notes(data, trainer.args)) == 1


def test_only_a_collator_that_can_pads_to_multiples():
    assert padding_to_multiples(collate, 32) is collate


def test_data_without_a_length_keeps_its_order(build, data):
    trainer = build(max_steps=2)
    trainer.train_dataset = data.to_iterable_dataset()
    assert trainer._get_train_sampler() is None
    trainer.train()
    assert flat(trainer.seen) == [len(ids) for ids in data["input_ids"][:12]]


def test_a_stream_has_the_order_of_the_datas_seed(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(40)))
    examples = ExampleStream.of(DataConfig(train=str(path), streaming=True), seed=1)

    def order(data_seed):
        trainer = SimpleNamespace(
            stream=EncodedStream(examples, lambda part, place: part.to_list()),
            args=SimpleNamespace(
                train_batch_size=4, dataloader_pin_memory=False, seed=1, data_seed=data_seed
            ),
            accelerator=SimpleNamespace(dataloader_config=SimpleNamespace(), prepare=lambda b: b),
            data_collator=lambda rows: [row["text"] for row in rows],
        )
        return list(chain(*islice(BatchingMixin.get_train_dataloader(trainer), 10)))

    assert sorted(order(2), key=int) == [str(n) for n in range(40)]
    assert order(None) == order(1) != order(2)
