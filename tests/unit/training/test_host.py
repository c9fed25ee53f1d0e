"""A run asks its host for the base, and to train inside it."""

from contextlib import contextmanager

from lorakit.training import train


class Host:
    def __init__(self):
        self.asked = []

    def load_base(self, recipe, task, tokenizer, labels):
        self.asked.append("base")
        return task.load_base(recipe, tokenizer, labels)

    @contextmanager
    def training(self, setup, trainer, frozen):
        self.asked.append("training")
        assert frozen.blocks is None
        yield ("A note of the host.",)
        self.asked.append("trained")


def test_a_run_asks_its_host(recipe):
    host = Host()
    result = train(recipe(), host=host)
    assert host.asked == ["base", "training", "trained"]
    assert "A note of the host." in (result.run_dir / "report.md").read_text()
