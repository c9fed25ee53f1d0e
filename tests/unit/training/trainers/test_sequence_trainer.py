"""Text to text: the loss of its parts, with and without generated text."""

import pytest

TASK = "SEQ_2_SEQ_LM"


def test_without_generation_there_is_the_loss_alone(
    prepare, tiny_t5_dir, summary_parquet, tmp_path
):
    made = prepare(TASK, tiny_t5_dir, summary_parquet)

    metrics = made.trainer(tmp_path, predict_with_generate=False).evaluate()

    assert "eval_loss" in metrics and "eval_rouge1" not in metrics


def test_label_smoothing_has_its_decoder_inputs(prepare, tiny_t5_dir, summary_parquet, tmp_path):
    made = prepare(TASK, tiny_t5_dir, summary_parquet)
    arguments = {"label_smoothing_factor": 0.1, "max_steps": 1}

    output = made.trainer(tmp_path, **arguments).train()

    assert output.training_loss > 0


def test_generating_does_not_change_the_loss(prepare, tiny_t5_dir, summary_parquet, tmp_path):
    made = prepare(TASK, tiny_t5_dir, summary_parquet)
    losses = [
        made.trainer(tmp_path, predict_with_generate=generates, generation_max_length=4).evaluate()
        for generates in (False, True)
    ]
    assert losses[0]["eval_loss"] == pytest.approx(losses[1]["eval_loss"], rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_model_that_makes_no_decoder_inputs_computes_its_loss_itself(
    prepare, tiny_t5_dir, summary_parquet, tmp_path, monkeypatch, smoothing
):
    made = prepare(TASK, tiny_t5_dir, summary_parquet)
    arguments = {"predict_with_generate": False, "label_smoothing_factor": smoothing}
    followed = made.trainer(tmp_path, **arguments).evaluate()

    # As in M2M-100, which derives them in its forward.
    monkeypatch.delattr(type(made.model), "prepare_decoder_input_ids_from_labels")
    trainer = made.trainer(tmp_path, **arguments)
    (note,) = trainer.notes
    assert note.endswith("it does not derive the decoder's inputs from labels.")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(followed["eval_loss"], rel=1e-5)
