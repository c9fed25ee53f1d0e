import shutil

import pytest

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.data.tokenizers import decode
from lorakit.serving.refusals import RequestError
from lorakit.serving.text_side import TextSide, TokenizerCache
from tiny_models import llama
from tiny_models.tokenizers import byte_bpe, one_piece_per_word, wordpiece

HELLO = [{"role": "user", "content": "sky"}]


def text_side(tokenizer=None, max_length=16, labels=(), **settings):
    tokenizer = tokenizer or byte_bpe(chat=True)
    model = llama(vocab_size=len(tokenizer), eos_token_id=2)
    return TextSide(model, tokenizer, InferenceSettings(**settings), labels, max_length)


def test_a_conversation_is_rendered_by_the_template():
    side = text_side()
    opened = decode(side.tokenizer, side.chat_ids(HELLO))
    assert opened == "<|user|>sky<|end|><|assistant|>"
    assert decode(side.tokenizer, side.chat_ids(HELLO, opens_answer=False)) == "<|user|>sky<|end|>"


def test_the_system_prompt_of_training_is_put_before_a_conversation_without_one():
    side = text_side(system_prompt="answer")
    ours = [{"role": "system", "content": "sing"}, *HELLO]
    assert decode(side.tokenizer, side.chat_ids(HELLO)).startswith(
        "<|system|>answer<|end|><|user|>"
    )
    assert decode(side.tokenizer, side.chat_ids(ours)).startswith("<|system|>sing<|end|><|user|>")


def test_a_template_that_refuses_gives_its_reason():
    tokenizer = byte_bpe(chat=True)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        RequestError, match="refuses the conversation: roles must alternate"
    ) as caught:
        text_side(tokenizer).chat_ids(HELLO)
    assert caught.value.param == "messages"
    tokenizer.chat_template = "{{ messages[0]['content'] + 1 }}"
    with pytest.raises(RequestError, match="refuses the conversation"):
        text_side(tokenizer).chat_ids(HELLO)


def test_without_a_template_only_an_instruction_can_be_asked():
    with pytest.raises(RequestError, match=r"no chat template. Use POST /v1/completions"):
        text_side(byte_bpe()).chat_ids(HELLO)
    alpaca = text_side(byte_bpe(), format="alpaca")
    prompt = decode(alpaca.tokenizer, alpaca.chat_ids(HELLO))
    assert prompt.endswith("### Instruction:\nsky\n\n### Response:\n")
    with pytest.raises(RequestError, match="got 2 messages, expected one of the user"):
        alpaca.chat_ids([{"role": "system", "content": "a"}, *HELLO])


def test_a_prompt_is_open_at_its_end():
    side = text_side(one_piece_per_word())
    assert side.prompt_ids("the sky")[-1] != 1
    assert text_side(byte_bpe()).prompt_ids("") == [1]


def test_answers_end_at_the_tokens_of_model_tokenizer_and_adapter():
    side = text_side(stop_token_ids=(9,))
    assert side.stop_token_ids == {2, side.tokenizer.eos_token_id, 9}


def test_texts_are_truncated_as_in_training():
    side = text_side(wordpiece(has_types=True), max_length=6)
    single = side.class_columns("the film was good and the sky was blue")
    assert len(single["input_ids"]) == 6
    pair = text_side(wordpiece(has_types=True), text_pair=True).class_columns(("a", "b"))
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]
    assert len(side.source_columns("sky " * 50)["input_ids"]) == 6


def test_an_input_of_the_other_kind_is_refused():
    with pytest.raises(RequestError, match="got a pair, expected texts"):
        text_side().class_columns(("a", "b"))
    with pytest.raises(RequestError, match="got a text, expected pairs"):
        text_side(text_pair=True).class_columns("a")


def test_texts_to_embed_are_not_truncated():
    side = text_side(max_length=2)
    assert len(side.columns_to_embed("the sky is blue", 100)["input_ids"]) == 5
    assert side.columns_to_embed([1, 2], None)["attention_mask"] == [1, 1]
    with pytest.raises(RequestError, match="got 5 tokens, expected 1 to 3"):
        side.columns_to_embed("the sky is blue", 3)
    with pytest.raises(RequestError, match="got 0 tokens, expected 1 to any number"):
        side.columns_to_embed([], None)


def test_words_keep_their_place():
    side = text_side(wordpiece(has_types=False), max_length=20)
    made = side.word_columns("Anna lives, today")
    assert [(w.text, w.start, w.end) for w in made.words] == [
        *(("Anna", 0, 4), ("lives", 5, 10), (",", 10, 11), ("today", 12, 17))
    ]
    assert {w for w in made.word_of if w is not None} == {0, 1, 2, 3}
    given = side.word_columns(["Anna", "lives"])
    assert given.words[0].start is None
    with pytest.raises(RequestError, match="got 30 words, expected at most"):
        side.word_columns("a " * 30)


def test_a_tokenizer_that_grammars_cannot_read_is_told(monkeypatch):
    def fail(*_, **__):
        raise TypeError("a slow tokenizer")

    monkeypatch.setattr("llguidance.hf.from_tokenizer", fail)
    with pytest.raises(RequestError, match="cannot follow a schema: a slow tokenizer") as caught:
        text_side().grammar_tokenizer  # noqa: B018
    assert caught.value.param == "response_format"


def test_a_text_without_a_token_is_refused():
    side = text_side()
    for columns in (side.class_columns, side.word_columns):
        with pytest.raises(RequestError, match=r"An input has no (token|word)"):
            columns("")
    with pytest.raises(RequestError, match="An input has no token"):
        side.word_columns([""])


def test_a_word_without_a_token_is_not_taken_for_one_that_was_cut_off():
    side = text_side(wordpiece(has_types=False))
    made = side.word_columns("the \u200b sky \u200b")
    assert [word for word in made.word_of if word is not None] == [0, 2]


@pytest.mark.parametrize("name", ["messages", "self", "tokenizer", "tokenize"])
def test_what_the_server_decides_is_no_variable_of_the_template(name):
    with pytest.raises(RequestError, match=f"got '{name}', which the server decides") as caught:
        text_side().chat_ids(HELLO, {name: "x"})
    assert caught.value.param == "chat_template_kwargs"


def test_a_system_message_that_the_template_leaves_out_is_refused():
    tokenizer = byte_bpe(chat=True)
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% endfor %}"
    )
    side = text_side(tokenizer)
    assert decode(tokenizer, side.chat_ids(HELLO)) == "<|user|>sky"
    with pytest.raises(RequestError, match="would have no effect") as caught:
        side.chat_ids([{"role": "system", "content": "sing"}, *HELLO])
    assert caught.value.param == "messages"


def test_a_text_to_score_ends_as_in_training():
    side = text_side(task_type="SEQ_CLS", format="prompt_completion", max_length=3)
    end = side.tokenizer.eos_token_id
    for text, is_ended in (("sky", True), ("sky<|end|>", True), ("sky sky sky sky sky", False)):
        columns = side.class_columns(text)
        assert [one == end for one in columns["input_ids"][-2:]] == [False, is_ended]
        assert len(columns["attention_mask"]) == len(columns["input_ids"])


# ---- tokenizers of adapters ----


@pytest.fixture
def directories(tmp_path):
    for name in ("a", "b", "c"):
        byte_bpe(chat=True).save_pretrained(tmp_path / name)
    (tmp_path / "c" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (tmp_path / "none").mkdir()
    return tmp_path


def test_the_same_files_are_one_tokenizer(directories):
    base = byte_bpe()
    cache = TokenizerCache(base)
    assert cache.get(directories / "a") is cache.get(directories / "b")
    assert cache.get(directories / "c") is not cache.get(directories / "a")
    assert cache.get(directories / "c").chat_template == "{{ messages[0]['content'] }}"
    assert cache.get(directories / "none") is base
    assert len(cache._tokenizers) == 2


def test_a_rewritten_tokenizer_is_read_again(directories):
    cache = TokenizerCache(byte_bpe())
    before = cache.get(directories / "a")
    shutil.copy(directories / "c" / "chat_template.jinja", directories / "a")
    assert cache.get(directories / "a").chat_template != before.chat_template
