import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from lorakit.cli.views.serving import show_calls, show_models, show_unmeasured
from lorakit.config import TaskType
from lorakit.serving.base_models import ModelKind
from lorakit.serving.service import Overview
from lorakit.serving.speed import Speed


def overview(*adapters, task=TaskType.CAUSAL_LM, shared=0, template=None, answers_alone=True):
    kind = ModelKind(task, 2 if task in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS) else None)
    known = [
        (
            SimpleNamespace(name=name, rank=8, bytes=2_000_000, problem=problem, path=Path("gone")),
            kind,
        )
        for name, problem in adapters
    ]
    given = (answers_alone, bool(template), shared, tuple(known))
    return Overview("small", "models/small", (kind,), *given)


def test_adapters_are_shown_with_their_costs(capsys):
    show_models(overview(("german", None), ("new", None), shared=5000), {"german": Speed(90, 100)})
    text = capsys.readouterr().out
    assert "Base small (models/small), loaded for CAUSAL_LM." in text
    assert "The tasks share 5.0 kB of the base's weights." in text
    rows = [line.split() for line in text.splitlines()]
    assert ["german", "CAUSAL_LM", "8", "2.0", "MB", "90", "(90%)"] in rows
    assert ["new", "CAUSAL_LM", "8", "2.0", "MB"] in rows


def test_many_adapters_are_cut_and_problems_are_told(capsys):
    given = [(f"a{i}", None) for i in range(25)] + [(f"b{i}", "It does nothing.") for i in range(7)]
    show_models(overview(*given), {})
    text = capsys.readouterr().out
    assert "and 5 more; GET /v1/models lists all." in text
    assert "b0: It does nothing." in text and "and 2 more;" in text
    show_unmeasured(["a", "b"], 1)
    assert "of 2 adapters was not measured" in capsys.readouterr().err


@pytest.mark.parametrize("task", list(TaskType))
def test_the_calls_can_be_copied(capsys, task):
    show_calls("http://127.0.0.1:8000", overview(("it's", None), task=task), has_key=True)
    text = capsys.readouterr().out
    assert "Serving at http://127.0.0.1:8000" in text
    line = next(line for line in text.splitlines() if line.strip().startswith("curl"))
    words = shlex.split(line)
    assert words[1].startswith("http://127.0.0.1:8000/v1/")
    assert json.loads(words[words.index("-d") + 1])["model"] == "it's"
    assert "authorization: Bearer KEY" in words
    python = [each.strip() for each in text.splitlines() if "openai" in each or "client." in each]
    compile("\n".join(python), "shown", "exec")


def test_without_an_adapter_the_base_is_called(capsys):
    show_calls("http://x:1", overview(("broken", "It does nothing.")), has_key=False)
    text = capsys.readouterr().out
    assert '"model": "small"' in text and "Bearer" not in text


def test_a_base_that_needs_an_adapter_is_asked_for_embeddings(capsys):
    show_calls("http://x:1", overview(answers_alone=False), has_key=False)
    text = capsys.readouterr().out
    assert "curl http://x:1/v1/embeddings -d" in text and "client.embeddings.create(" in text


def test_a_model_is_asked_to_chat_if_it_has_a_template(capsys):
    for template, path in ((None, "/v1/completions"), ("{{ messages }}", "/v1/chat/completions")):
        show_calls("http://x:1", overview(("german", None), template=template), has_key=False)
        assert f"curl http://x:1{path} -d" in capsys.readouterr().out
