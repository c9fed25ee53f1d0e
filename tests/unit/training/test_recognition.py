"""Task, columns and lengths are inferred from data, or the reason is given why not."""

import pytest

from fixtures.layouts import CHATS, PAIRS, PROMPTED, REVIEWS, TAGGED, write_data
from lorakit.config import TaskType
from lorakit.errors import DataError, LorakitError
from lorakit.training.recognition import recognize

SHAPES = {
    # name: (file, contents, task, columns)
    "labels": (
        "reviews.csv",
        REVIEWS,
        "SEQ_CLS",
        {"text": "review", "label": "verdict"},
    ),
    "pairs": (
        "pairs.jsonl",
        PAIRS,
        "SEQ_CLS",
        {"text": "premise", "text_pair": "hypothesis", "label": "label"},
    ),
    "chats": ("chats.jsonl", CHATS, "CAUSAL_LM", {"messages": "conversations"}),
    "prompts of messages": (
        "asked.jsonl",
        PROMPTED,
        "CAUSAL_LM",
        {"format": "prompt_completion"},
    ),
    "prompts": (
        "asked.jsonl",
        [{"question": f"{n}?", "answer": "Yes, it is so."} for n in range(9)],
        "CAUSAL_LM",
        {"format": "prompt_completion", "prompt": "question", "completion": "answer"},
    ),
    "alpaca": (
        "alpaca.json",
        [{"instruction": f"Say {n}.", "input": "", "output": "Yes."} for n in range(9)],
        "CAUSAL_LM",
        {"format": "alpaca"},
    ),
    "texts": (
        "texts.jsonl",
        [{"story": f"Once upon a time {n} cats slept."} for n in range(9)],
        "CAUSAL_LM",
        {"format": "text", "text": "story"},
    ),
    "tags": (
        "tags.jsonl",
        TAGGED,
        "TOKEN_CLS",
        {"tokens": "tokens", "tags": "ner_tags"},
    ),
    "summaries": (
        "news.jsonl",
        [{"article": f"Cats slept {n} times. " * 9, "highlights": "Cats."} for n in range(9)],
        "SEQ_2_SEQ_LM",
        {"source": "article", "target": "highlights"},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_named", [False, True])
def test_task_and_columns_are_recognized(tmp_path, shape, is_named):
    name, contents, task, expected = SHAPES[shape]
    path = write_data(tmp_path, name, contents)
    found = recognize(str(path), TaskType(task) if is_named else None, None)
    assert found.task == task
    assert expected.items() <= found.columns.items()
    assert found.examples == (len(contents) if isinstance(contents, list) else 40)
    assert not found.is_counted
    assert (found.target_tokens is not None) == (task == "SEQ_2_SEQ_LM")


def test_other_columns_of_classes_are_named(tmp_path):
    path = write_data(tmp_path, "reviews.csv", REVIEWS)
    notes = recognize(str(path), None, None).notes
    assert "The labels are 2 classes in 'verdict': bad, good." in notes
    assert "Other columns that could be labels (data.label): stars." in notes


def test_two_columns_of_texts_are_prompt_and_completion(tmp_path):
    rows = [{"id": n, "frage": f"Was ist {n}?", "antwort": f"Das ist {n}."} for n in range(9)]
    found = recognize(str(write_data(tmp_path, "quiz.jsonl", rows)), TaskType.CAUSAL_LM, None)
    assert found.columns == {
        "format": "prompt_completion",
        "prompt": "frage",
        "completion": "antwort",
    }
    assert found.notes[-1] == (
        "'frage' is taken as the prompt and 'antwort' as the completion; exchange them if that is "
        "wrong."
    )


def test_without_a_tokenizer_a_longer_text_has_more_tokens(tmp_path):
    def tokens(words):
        examples = [{"text": "word " * words}, {"text": "a"}]
        return recognize(str(write_data(tmp_path, "t.jsonl", examples)), None, None).tokens

    assert 9 <= tokens(9) < 100 <= tokens(100)


@pytest.mark.parametrize(
    ("name", "contents", "task", "said"),
    [
        ("a.jsonl", CHATS, "SEQ_CLS", "They look like those of --task CAUSAL_LM."),
        ("a.csv", REVIEWS, "TOKEN_CLS", "They look like those of --task SEQ_CLS."),
        ("a.jsonl", TAGGED, "SEQ_2_SEQ_LM", "They look like those of --task TOKEN_CLS."),
        ("a.csv", "a,b\n1,x\n2,y\n3,z\n", None, "Name it with --task"),
        ("a.csv", "text,label\na,0.31\nb,0.7\nc,\n", "SEQ_CLS", "Not numbers in"),
        ("a.csv", "text,label\na,x\nb,\nc,x\nd,y\n", None, "Labels are missing"),
        ("a.csv", "text,label\na,x\n,y\nc,x\nd,y\n", None, "is empty in example 2"),
        ("a.csv", "text,label\na,x,2\n", None, "has 3 cells"),
        ("a.csv", "", None, "No examples in"),
        ("a.jsonl", "{\n", None, "expected one JSON object"),
        ("a.jsonl", [{"prompt": "", "chosen": "b", "rejected": "c"}], None, "an empty prompt"),
        ("a.txt", "text", None, "expected one of .csv"),
    ],
)
def test_what_does_not_fit_or_cannot_be_read_is_refused(tmp_path, name, contents, task, said):
    path = write_data(tmp_path, name, contents)
    with pytest.raises(LorakitError) as caught:
        recognize(str(path), task and TaskType(task), None)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (["0.31", "0.7", "0.2"], "Each label in 'label' is a number to predict."),
        ([[0.5, 1.5]] * 3, "Each label in 'label' is a list of 2 numbers to predict."),
        (
            [["a"], ["b", "a"], []],
            "The labels are lists, with 2 different labels in 'label': a, b.",
        ),
    ],
)
def test_labels_other_than_one_class_are_told(tmp_path, values, note):
    examples = [{"text": f"text {n}", "label": value} for n, value in enumerate(values)]
    path = write_data(tmp_path, "t.jsonl", examples)

    assert note in recognize(str(path), TaskType.SEQ_CLS, None).notes


def answers(**more):
    return [
        {"prompt": f"Say {n}.", "chosen": " Yes.", "rejected": " No.", **more} for n in range(9)
    ]


@pytest.mark.parametrize(
    ("contents", "task", "objective", "layout"),
    [
        (answers(), None, "dpo", "preference"),
        (answers(topic="sums"), "CAUSAL_LM", "dpo", "preference"),
        (answers(), "SEQ_CLS", "reward", "preference"),
        (
            [{"prompt": "Say it.", "completion": " Yes.", "label": n % 2 == 0} for n in range(9)],
            None,
            "kto",
            "votes",
        ),
        (
            [
                {
                    "prompt": [{"role": "user", "content": f"{n}?"}],
                    "chosen": [{"role": "assistant", "content": "Yes."}],
                    "rejected": [{"role": "assistant", "content": "No."}],
                }
                for n in range(9)
            ],
            None,
            "dpo",
            "preference",
        ),
    ],
)
def test_preferences_are_recognized(tmp_path, contents, task, objective, layout):
    path = write_data(tmp_path, "t.jsonl", contents)
    found = recognize(str(path), task and TaskType(task), None)
    assert (found.objective, found.columns) == (objective, {"format": layout})
    assert found.task == ("SEQ_CLS" if objective == "reward" else "CAUSAL_LM")
    assert 2 <= found.tokens < 40


def test_an_objective_that_does_not_fit_is_refused(tmp_path):
    path = write_data(tmp_path, "t.jsonl", answers())
    with pytest.raises(DataError, match=r"objective: \{type: dpo\}"):
        recognize(str(path), None, None, "kto")
    same = [{**row, "rejected": row["chosen"]} for row in answers()]
    with pytest.raises(DataError, match="the chosen answer is the rejected one"):
        recognize(str(write_data(tmp_path, "same.jsonl", same)), None, None)
