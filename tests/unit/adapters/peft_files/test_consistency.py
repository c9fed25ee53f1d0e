"""Readers beside writers: one save's tensors never meet another save's configuration."""

import json
import os
import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import Adapter
from lorakit.adapters.peft_files import files
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.errors import AdapterFileError, LorakitError
from lorakit.files.atomic import replacing_directory
from tiny_models.adapters import layered_adapter


def numbered(number):
    """An adapter whose tensors and settings all say its number."""
    adapter = layered_adapter(r=2, width=8, lora_alpha=number, base_model=f"base-{number}")
    for A, B in adapter.factors.values():
        A.fill_(number)
        B.fill_(number)
    return adapter


def number_of(adapter):
    """Return the number of a numbered adapter, after looking for it everywhere."""
    numbers = {int(factor.max()) for pair in adapter.factors.values() for factor in pair}
    numbers |= {int(factor.min()) for pair in adapter.factors.values() for factor in pair}
    numbers |= {int(adapter.config.lora_alpha), int(adapter.base_model.removeprefix("base-"))}
    assert len(numbers) == 1, numbers
    return numbers.pop()


def edit(directory, **changes):
    file = directory / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes, indent=1))


@pytest.fixture
def saved(tmp_path):
    numbered(1).save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def settled(saved, monkeypatch):
    """A saved adapter that nobody writes, so that a reader need not wait for the end of a save."""
    monkeypatch.setattr(files, "_SETTLED_S", 0.0)
    return saved


def save_into(path, adapter):
    adapter.save(path)


def exchange(path, adapter):
    with replacing_directory(path, last=(WEIGHTS_FILE, CONFIG_FILE)) as partial:
        adapter.save(partial)


@pytest.mark.parametrize("save", [save_into, exchange])
@pytest.mark.parametrize("writers", [1, 2])
def test_readers_beside_writers_see_whole_saves(saved, save, writers):
    """Two writers take turns at moving their pairs, so that none stays mixed."""
    adapters = {number: numbered(number) for number in (1, 2, 3)}
    stop = threading.Event()
    problems, seen = [], set()

    def write(numbers):
        while not stop.is_set():
            for number in numbers:
                try:
                    save(saved, adapters[number])
                except Exception as error:
                    problems.append(error)

    def read():
        while not stop.is_set():
            try:
                seen.add(number_of(Adapter.load(saved)))
            except Exception as error:
                problems.append(error)

    numbers = [(1, 2)] if writers == 1 else [(1, 2), (3,)]
    threads = [threading.Thread(target=write, args=(n,)) for n in numbers[:writers]]
    if writers == 2 and save is exchange:
        threads = threads[:1]  # whoever exchanges second would delete what it did not make
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    end = time.monotonic() + 30  # a busy disk takes its time for a save
    while len(seen) < 2 and not problems and time.monotonic() < end:
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems, problems[:3]
    assert len(seen) > 1


@pytest.mark.parametrize("step", range(6))
def test_a_save_that_is_killed_leaves_old_new_or_a_pair_that_is_distinguished(
    saved, monkeypatch, step
):
    """The process ends at each of its calls that change the disk."""

    class Killed(BaseException):
        pass

    calls = 0

    def killing(function):
        def run(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls > step:
                raise Killed
            return function(*arguments, **options)

        return run

    monkeypatch.setattr(os, "fsync", killing(os.fsync))
    monkeypatch.setattr(os, "replace", killing(os.replace))
    with pytest.raises(Killed):
        numbered(2).save(saved)
        calls = step + 1
        raise Killed
    monkeypatch.undo()
    monkeypatch.setattr(files, "_SETTLED_S", 0.0)
    try:
        assert number_of(Adapter.load(saved)) == (1 if step < 3 else 2)
        assert step != 3
    except AdapterFileError as error:
        assert step == 3  # between the two moves
        assert "Write the values back or save the adapter again" in str(error)
        assert (
            f"{CONFIG_FILE} has lora_alpha=1, and {WEIGHTS_FILE} was saved with lora_alpha=2"
            in (str(error))
        )
    numbered(3).save(saved)
    assert number_of(Adapter.load(saved)) == 3


class TestEdited:
    @pytest.mark.parametrize(
        "changes",
        [
            {"lora_alpha": 9},
            {"use_rslora": True},
            {"alpha_pattern": {"q_proj": 4}},
            {"target_modules": ["q_proj"]},
            {"layers_to_transform": [0]},
            {"init_lora_weights": "pissa"},
        ],
    )
    def test_what_says_how_the_tensors_act_is_asked_about(self, settled, changes):
        edit(settled, **changes)
        with pytest.raises(AdapterFileError) as caught:
            Adapter.load(settled)
        text = str(caught.value)
        key = next(iter(changes))
        assert f"{CONFIG_FILE} has {key}={json.dumps(changes[key])}, and {WEIGHTS_FILE} was" in text
        assert "the file was edited" in text and "allow_edited_config=True" in text
        assert f"lorakit convert --allow-edited-config {settled} NEW" in text

    def test_the_change_counts_where_it_is_allowed(self, settled):
        edit(settled, lora_alpha=9)
        assert Adapter.load(settled, allow_edited_config=True).config.lora_alpha == 9

    @pytest.mark.parametrize(
        "changes",
        [
            {"base_model_name_or_path": "another/place"},
            {"task_type": "CAUSAL_LM"},
            {"lora_dropout": 0.5},
            {"revision": "main", "peft_version": "0.21.2", "inference_mode": False},
            {"lora_alpha": 1.0},
            {"exclude_modules": []},
        ],
    )
    def test_the_rest_may_be_changed(self, settled, changes):
        edit(settled, **changes)
        Adapter.load(settled)

    def test_no_time_is_lost_on_files_that_nobody_writes(self, settled, monkeypatch):
        edit(settled, base_model_name_or_path="another/place")
        monkeypatch.setattr(files, "_RETRY_S", 60.0)
        assert Adapter.load(settled).base_model == "another/place"


def test_files_of_other_tools_have_no_record(saved):
    save_file(load_file(saved / WEIGHTS_FILE), saved / WEIGHTS_FILE, metadata={"format": "pt"})
    edit(saved, lora_alpha=9)
    assert Adapter.load(saved).config.lora_alpha == 9


def test_a_damaged_record_is_a_disagreement(settled):
    metadata = {"format": "pt", "lorakit_config": "{"}
    save_file(load_file(settled / WEIGHTS_FILE), settled / WEIGHTS_FILE, metadata=metadata)
    with pytest.raises(LorakitError, match="do not belong together"):
        Adapter.load(settled)


def test_tensors_of_another_adapter_are_noticed(settled, tmp_path):
    numbered(2).save(tmp_path / "other")
    (tmp_path / "other" / WEIGHTS_FILE).replace(settled / WEIGHTS_FILE)
    with pytest.raises(AdapterFileError, match="has lora_alpha=1, and"):
        Adapter.load(settled)


def test_the_record_is_the_same_whatever_came_before(saved, tmp_path):
    Adapter.load(saved).save(tmp_path / "again")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert torch.equal(
        *(
            load_file(d / WEIGHTS_FILE)["base_model.model.model.layers.0.attn.q_proj.lora_A.weight"]
            for d in (saved, tmp_path / "again")
        )
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": r".*\.q_proj"},
        {"exclude_modules": ["v_proj"]},
        {"target_modules": ["model.layers.0.attn.q_proj", "v_proj"], "layers_to_transform": [1]},
    ],
)
def test_tensors_that_the_configuration_does_not_select_are_refused(changes, tmp_path):
    layered_adapter().save(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    save_file(tensors, tmp_path / WEIGHTS_FILE)  # as another tool writes it
    edit(tmp_path, **changes)
    with pytest.raises(AdapterFileError, match=r"there are tensors for .*, expected only"):
        Adapter.load(tmp_path)
    edit(tmp_path, target_modules="all-linear", exclude_modules=None, layers_to_transform=None)
    assert Adapter.load(tmp_path).factors.keys() == layered_adapter().factors.keys()
