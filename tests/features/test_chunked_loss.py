"""Both language trainers: the plain Trainer's loss, and no step that holds all logits."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Trainer, set_seed

from allocations import allocations_of
from lorakit import load_adapter, save_adapter
from lorakit.config import NOT_COUNTED
from lorakit.training.step import OutputStep
from tiny_models import randomize_
from tolerances import TOLERANCE, largest_error

CAUSAL, TEXT_TO_TEXT = "CAUSAL_LM", "SEQ_2_SEQ_LM"
PLAIN = {CAUSAL: Trainer, TEXT_TO_TEXT: Seq2SeqTrainer}
HEADS = {
    "frozen": {"target_modules": "all-linear"},
    "adapted": {"target_modules": ["lm_head"]},
    "trained in full": {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
}
# One step of accumulated batches in another order of additions, on a tiny two-layer model.
STEP_TOLERANCE = 1e-4


@pytest.fixture
def made(prepare, tiny_llama_dir, tiny_t5_dir, jsonl):
    """Prepare a task on rows whose batches differ in how many tokens count."""

    def make(task, head="frozen", vocabulary=None, **options):
        ends = ["green", "blue and green and yellow", "red", "white snow on the hill"]
        if task == CAUSAL:
            rows = [{"prompt": "the sky is", "completion": f" {ends[i % 4]}"} for i in range(16)]
        else:
            rows = [{"source": "the sky is", "target": ends[i % 4]} for i in range(16)]
        model = tiny_llama_dir if task == CAUSAL else tiny_t5_dir
        made = prepare(task, model, jsonl(rows), lora={"r": 2, **HEADS[head]}, **options)
        if vocabulary is not None:
            made.model.resize_token_embeddings(vocabulary, mean_resizing=False)
        made.add_adapter()
        randomize_(made.model, scale=0.1)
        return made

    return make


def plain_trainer(made, task, ours):
    """Build transformers' own trainer on a copy of the model, with the same rows and arguments."""
    model = copy.deepcopy(made.model)
    collator, loss_of = ours.data_collator, None
    if task == TEXT_TO_TEXT:
        collator = DataCollatorForSeq2Seq(made.tokenizer, model=model)
        # T5 is handed num_items_in_batch and takes the mean of each batch all the same, so that
        # its accumulated loss is too large by the number of batches.
        loss_of = None if ours.args.label_smoothing_factor else mean_over_accumulated
    return PLAIN[task](
        model=model,
        args=copy.deepcopy(ours.args),
        train_dataset=made.encoded.train,
        eval_dataset=made.encoded.validation,
        data_collator=collator,
        compute_loss_func=loss_of,
    )


def mean_over_accumulated(outputs, labels, num_items_in_batch=None):
    logits, targets = outputs.logits.flatten(0, 1), labels.flatten()
    count = (targets != NOT_COUNTED).sum() if num_items_in_batch is None else num_items_in_batch
    return F.cross_entropy(logits, targets, reduction="sum") / count


@pytest.mark.parametrize("task", [CAUSAL, TEXT_TO_TEXT])
@pytest.mark.parametrize(
    ("head", "arguments"),
    [
        ("frozen", {"gradient_accumulation_steps": 2}),
        ("adapted", {"label_smoothing_factor": 0.2}),
        ("trained in full", {"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.2}),
    ],
)
def test_training_is_that_of_the_plain_trainer(made, tmp_path, task, head, arguments):
    prepared = made(task, head)
    arguments = {
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "learning_rate": 0.1,
        "optim": "sgd",  # Adam would hide a loss that is too large by a factor
        "predict_with_generate": False,
        **arguments,
    }
    if task == CAUSAL:
        del arguments["predict_with_generate"]
    ours = prepared.trainer(tmp_path / "ours", **arguments)
    assert isinstance(ours.step, OutputStep) and ours.notes == ()
    ours.step.output.chunk_tokens = 5
    plain = plain_trainer(prepared, task, ours)
    for trainer in (ours, plain):
        set_seed(0)  # T5 drops the same in both
        trainer.train()

    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (ours, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=STEP_TOLERANCE) and len(losses[0]) == 3
    wanted = dict(plain.model.named_parameters())
    moved = 0
    for name, parameter in ours.model.named_parameters():
        assert largest_error(parameter, wanted[name]) < STEP_TOLERANCE, name
        moved += parameter.requires_grad
    assert moved


@pytest.mark.parametrize("task", [CAUSAL, TEXT_TO_TEXT])
@pytest.mark.parametrize("head", ["frozen", "trained in full"])
@pytest.mark.parametrize("half", ["bf16 autocast", "bfloat16 base"])
def test_half_precision_on_a_cpu_gives_the_plain_trainers_loss(made, tmp_path, task, head, half):
    is_autocast = half == "bf16 autocast"
    prepared = made(task, head, top={} if is_autocast else {"dtype": "bfloat16"})
    ours = prepared.trainer(tmp_path, max_steps=1, bf16=is_autocast)
    assert ours.notes == ()
    plain = plain_trainer(prepared, task, ours)
    losses = []
    for trainer in (ours, plain):
        set_seed(0)
        trainer.train()
        row = trainer.state.log_history[0]
        losses.append(torch.tensor([row["loss"], row["grad_norm"]]))
        assert trainer.model.dtype == (torch.float32 if is_autocast else torch.bfloat16)
    assert largest_error(losses[0], losses[1]) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("task", [CAUSAL, TEXT_TO_TEXT])
@pytest.mark.parametrize("head", ["frozen", "adapted"])
def test_no_training_step_and_no_evaluation_holds_all_logits(made, tmp_path, task, head):
    prepared = made(task, head, vocabulary=2000)
    arguments = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 48}
    if task == TEXT_TO_TEXT:
        arguments["generation_max_length"] = 4
    ours = prepared.trainer(tmp_path, max_steps=1, **arguments)
    ours.step.output.chunk_tokens = 8
    plain = plain_trainer(prepared, task, ours)
    rows = prepared.encoded.train.select([i % 12 for i in range(48)])
    batch = ours.data_collator([*rows])
    whole = batch["labels"].numel() * 2000 * torch.float32.itemsize

    def largest_of(trainer):
        trainer.train()
        wrapped = trainer.model_wrapped
        step = allocations_of(lambda: trainer.training_step(wrapped, dict(batch)))
        return step.largest, allocations_of(lambda: trainer.evaluate(rows)).largest

    assert max(largest_of(ours)) < whole / 2
    assert min(largest_of(plain)) >= whole, "the measure must see what it is to forbid"


@pytest.mark.parametrize("task", [CAUSAL, TEXT_TO_TEXT])
@pytest.mark.parametrize("head", ["adapted", "trained in full"])
def test_evaluation_is_that_of_the_saved_adapter_on_a_fresh_base(
    made, prepare, tmp_path, task, head
):
    """What a run reports is what the files it wrote give, from the model's own logits."""
    prepared = made(task, head)
    arguments = {"predict_with_generate": False} if task == TEXT_TO_TEXT else {}
    trainer = prepared.trainer(tmp_path, max_steps=3, per_device_eval_batch_size=4, **arguments)
    trainer.train()
    reported = trainer.evaluate()["eval_loss"]
    save_adapter(prepared.model, tmp_path / "adapter")
    base = prepared.task.load_base(prepared.recipe, prepared.tokenizer, prepared.labels)
    load_adapter(base, tmp_path / "adapter")
    batch = trainer.data_collator([*prepared.encoded.validation])
    with torch.no_grad():
        logits = base(**batch).logits
    labels = batch["labels"]
    if task == CAUSAL:
        logits, labels = logits[:, :-1], labels[:, 1:]
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=NOT_COUNTED)
    assert len(prepared.encoded.validation) == 4  # one batch, whose mean is that of all tokens
    assert reported == pytest.approx(expected.item(), rel=1e-5)


def with_a_penalty(model, args, outputs):
    if outputs.loss is not None:
        outputs.loss = outputs.loss + 0.5


def test_a_model_that_is_not_followed_computes_its_loss_itself_and_says_so(made, tmp_path):
    for task in (CAUSAL, TEXT_TO_TEXT):
        prepared = made(task)
        prepared.model.register_forward_hook(with_a_penalty)
        options = {"max_steps": 1, "per_device_train_batch_size": 2}
        losses = []
        for accumulated in (1, 2):
            set_seed(0)
            trainer = prepared.trainer(
                tmp_path, gradient_accumulation_steps=accumulated, learning_rate=0.0, **options
            )
            trainer.train()
            losses.append(trainer.state.log_history[0]["loss"])
        name = type(prepared.model).__name__
        (note,) = trainer.notes
        assert note.startswith(
            "Each step computes the logits of all its tokens at once, because lorakit cannot "
            f"follow this {name} from its output layer to its loss: its loss is "
        )
        assert losses[1] < 1.5 * losses[0]
        assert trainer.evaluate()["eval_loss"] > 0.5
