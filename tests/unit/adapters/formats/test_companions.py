import pytest

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.formats.companions import COMPANION_FILES, write_with_companions
from lorakit.adapters.inference_settings import SETTINGS_FILE
from lorakit.errors import OutputExistsError
from tiny_models.adapters import layered_adapter

OWN = {"adapter_config.json", "adapter_model.safetensors"}
BELONG = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.txt")
BELONG += ("merges.txt", "spiece.model", "special_tokens_map.json", SETTINGS_FILE)
DO_NOT = ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "README.md")
DO_NOT += ("trainer_state.json", "model.safetensors", "manifest.json", "adapter_model.bin", "x.png")


def test_of_a_checkpoint_only_what_belongs_to_an_adapter_comes_along(tmp_path):
    source = tmp_path / "checkpoint-3"
    source.mkdir()
    for name in (*BELONG, *DO_NOT, *OWN, ".tokenizer"):
        (source / name).write_text(name)
    (source / "tokenizer_folder").mkdir()
    written = write_with_companions(layered_adapter(), tmp_path / "out", source)
    assert {path.name for path in written} == OWN | {*BELONG}
    assert all(path.is_file() for path in written)
    assert (tmp_path / "out" / SETTINGS_FILE).read_text() == SETTINGS_FILE
    assert Adapter.load(tmp_path / "out").factors  # its own files are not the source's


def test_what_a_tokenizer_saves_belongs_to_an_adapter(tmp_path):
    from transformers import BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    tokenizer.chat_template = "{{ messages }}"
    saved = tmp_path / "tokenizer"
    tokenizer.save_pretrained(saved)
    names = {path.name for path in saved.iterdir()}
    assert len(names) > 1
    written = write_with_companions(layered_adapter(), tmp_path / "out", saved)
    assert {path.name for path in written} == names | OWN


@pytest.mark.parametrize("source", [None, "some/hub-id"])
def test_nothing_comes_along_from_elsewhere(source, tmp_path):
    written = write_with_companions(layered_adapter(), tmp_path / "out", source)
    assert {path.name for path in written} == OWN


def test_no_pattern_takes_everything():
    assert "*" not in COMPANION_FILES and not any(p.startswith("*") for p in COMPANION_FILES)


def test_a_directory_that_holds_files_is_left_alone(tmp_path):
    (tmp_path / "kept").write_text("kept")
    with pytest.raises(OutputExistsError, match="it holds files already"):
        write_with_companions(layered_adapter(), tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
