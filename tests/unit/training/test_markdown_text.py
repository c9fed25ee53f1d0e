from lorakit.training.markdown_text import table, text_table


def test_a_table_of_values():
    assert table(("name", "value"), [("a|b", 1)]) == "| name | value |\n|---|---:|\n| a\\|b | 1 |"


def test_texts_from_data_are_read_as_texts():
    made = text_table(("input",), [("![x](http://a) <b> *c* \x1b",)])
    assert made.split("\n")[2] == "| !\\[x](http://a) \\<b\\> \\*c\\* \\\\x1b |"
