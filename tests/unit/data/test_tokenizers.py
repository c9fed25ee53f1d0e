import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from lorakit.data.text_formats import completions_ids, texts_ids
from lorakit.data.tokenizers import (
    batch_columns,
    chat_columns,
    ids_to_continue,
    pad_batch,
    token_ids,
    word_columns,
)
from tiny_models.tokenizers import byte_bpe, one_piece_per_word


@pytest.fixture
def llama(tiny_llama_dir):
    """A tokenizer that puts its token of beginning before every text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    begin = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A $B",
        special_tokens=[(begin, tokenizer.bos_token_id)],
    )
    return tokenizer


@pytest.fixture
def bert(tiny_bert_dir):
    return AutoTokenizer.from_pretrained(tiny_bert_dir)


@pytest.mark.parametrize("text", ["{b}the grass", "the grass", "{b}{b}the grass"])
@pytest.mark.parametrize("end", ["", "{e}", "{e}{e}"])
def test_a_text_has_one_beginning_and_one_end(llama, text, end):
    marks = {"b": llama.bos_token, "e": llama.eos_token}
    (made,) = texts_ids(llama, [(text + end).format(**marks)])
    ids = made.ids

    (plain,) = texts_ids(llama, ["the grass"])
    expected = plain.ids
    assert ids == expected
    assert ids.count(llama.bos_token_id) == ids.count(llama.eos_token_id) == 1


def test_a_rendered_conversation_as_text_has_one_beginning(llama):
    llama.chat_template = "{{ bos_token }}" + llama.chat_template
    talk = [{"role": "user", "content": "the sky?"}, {"role": "assistant", "content": "blue"}]
    text = llama.apply_chat_template(talk, tokenize=False)

    rendered = chat_columns(llama, talk)["input_ids"]

    assert rendered.count(llama.bos_token_id) == 1
    assert token_ids(llama, text) == rendered
    (made,) = completions_ids(llama, [text[: text.index("blue")]], [text[text.index("blue") :]])
    assert made.ids[: len(rendered)] == rendered
    assert made.counted[: len(rendered)].count(True) < len(rendered)


@pytest.mark.parametrize("pair", [None, "the dog", "the dog [SEP]"])
@pytest.mark.parametrize("text", ["the cat", "[CLS] the cat"])
def test_texts_and_pairs_have_every_column_cut_alike(bert, text, pair):
    pairs = () if pair is None else (["the dog"],)
    plain = batch_columns(bert, ["the cat"], *pairs)

    made = batch_columns(bert, [text], *(() if pair is None else ([pair],)))

    assert made == plain


def test_words_keep_their_own_token(bert):
    columns, words = word_columns(bert, [["[CLS]", "the", "cat"], ["the", "[SEP]"]], 16)

    tokens = [bert.convert_ids_to_tokens(ids) for ids in columns["input_ids"]]
    assert tokens == [["[CLS]", "the", "cat", "[SEP]"], ["[CLS]", "the", "[SEP]"]]
    assert words == [[0, 1, 2, None], [None, 0, 1]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_batches_are_padded_as_the_tokenizer_pads(request, name, side):
    tokenizer = request.getfixturevalue(name)
    tokenizer.padding_side = side
    pair = [["the sky", "grass"]] if name == "bert" else []
    texts = ["the grass is green", "sky", "the sun"]
    columns = batch_columns(tokenizer, texts, *([texts[::-1]] if pair else []))
    padded, expected = pad_batch(tokenizer, columns), tokenizer.pad(columns, return_tensors="pt")
    assert padded.keys() == expected.keys()
    for key, tensor in expected.items():
        assert padded[key].dtype == tensor.dtype and padded[key].tolist() == tensor.tolist()


def test_an_end_token_is_left_out_of_a_prompt_only_where_the_tokenizer_appends_it():
    appending = one_piece_per_word()
    assert ids_to_continue(appending, "the sky") == token_ids(appending, "the sky")[:-1]
    assert ids_to_continue(appending, "the sky</s>") == token_ids(appending, "the sky</s>")
    plain = byte_bpe()
    assert ids_to_continue(plain, "the sky</s>")[-1] == plain.eos_token_id
    assert ids_to_continue(plain, "") == []
