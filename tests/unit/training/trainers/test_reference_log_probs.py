"""The reference is computed once for a run of several epochs, and read again after a stop."""

import torch

from lorakit.files.tensor_files import read_safetensors, write_safetensors


def attached(prepare_preferences, model, folder, **arguments):
    trainer = prepare_preferences(model).trainer(folder, **arguments)
    trainer.create_optimizer_and_scheduler(1)
    if trainer._visits_again():
        trainer._know_reference()
    return trainer


def test_several_epochs_compute_it_once(prepare_preferences, tiny_llama_dir, tmp_path):
    trainer = attached(prepare_preferences, tiny_llama_dir, tmp_path, num_train_epochs=2)
    known = torch.tensor(trainer.train_dataset["reference"])
    batch = trainer.data_collator([{**row} for row in trainer.train_dataset])
    del batch["reference"]
    expected = trainer.step.reference(trainer.model, batch)
    torch.testing.assert_close(known, expected, rtol=1e-5, atol=1e-5)


def test_a_file_of_the_same_examples_is_read(prepare_preferences, tiny_llama_dir, tmp_path):
    attached(prepare_preferences, tiny_llama_dir, tmp_path, num_train_epochs=2)
    path = tmp_path / "reference.safetensors"
    file = read_safetensors(path)
    marked = {"log_probs": file.tensors["log_probs"] + 1}
    write_safetensors(path, marked, file.metadata)
    again = attached(prepare_preferences, tiny_llama_dir, tmp_path, num_train_epochs=2)
    found = torch.tensor(again.train_dataset["reference"])
    assert torch.equal(found, marked["log_probs"])
    for damage in (lambda: path.write_bytes(b"x"), lambda: write_safetensors(path, marked, {})):
        damage()
        again = attached(prepare_preferences, tiny_llama_dir, tmp_path, num_train_epochs=2)
        found = torch.tensor(again.train_dataset["reference"])
        assert torch.equal(found, file.tensors["log_probs"])


def test_one_epoch_computes_it_in_the_step(prepare_preferences, tiny_llama_dir, tmp_path):
    trainer = attached(prepare_preferences, tiny_llama_dir, tmp_path, num_train_epochs=1)
    assert "reference" not in trainer.train_dataset.column_names
    trainer = attached(prepare_preferences, tiny_llama_dir, tmp_path, max_steps=1)
    assert "reference" not in trainer.train_dataset.column_names
