import pytest
from datasets import Dataset

from lorakit.errors import DataError
from lorakit.training.tasks.conversations import check_conversations, conversation_of


def test_keys_a_table_has_filled_with_none_are_dropped():
    rows = Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "c", "name": "b"},
                ]
            }
        ]
    )

    assert conversation_of(rows[0], "messages").messages == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "c", "name": "b"},
    ]


def test_malformed_conversations_are_listed():
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows = [[user, assistant], [], [user], [{"role": "user"}, assistant], [user]]
    table = Dataset.from_list([{"talk": row} for row in rows])

    with pytest.raises(DataError) as caught:
        check_conversations(table, "talk", "the rows of 'x'")

    assert str(caught.value) == (
        "Conversations are malformed in the rows of 'x', column 'talk': example 2: no list of "
        "messages; examples 3, 5: no message by 'assistant'; example 4: a message without content; "
        "expected a list of messages such as {'role': 'user', 'content': 'Hello'}, one of them by "
        "'assistant'. Repair or remove these examples."
    )
