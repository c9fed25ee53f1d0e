"""`lorakit generate --url` against a real server: each task, the base, names."""


def test_the_answer_is_that_of_the_adapter_loaded_here(cli, served):
    words = ("what colour is the sky", "--max-new-tokens", 6)
    here = cli("generate", served.folder / "german", *words)
    result = cli("generate", "german", *words, "--url", served.server.url)
    assert result.exit_code == 0, result.stderr
    chat = served.post(
        "/v1/chat/completions",
        {
            "model": "german",
            "messages": [{"role": "user", "content": words[0]}],
            "max_tokens": 6,
            "temperature": 0,
        },
    )
    assert result.stdout == chat["choices"][0]["message"]["content"] + "\n"
    assert here.exit_code == 0  # without its layout it continues the text there
    assert f"lorakit chat {served.server.url} --adapter german" in result.stderr


def test_a_run_stands_for_its_name_and_texts_may_come_first(cli, served):
    common = ("--url", served.server.url, "--max-new-tokens", 3)
    by_path = cli("generate", served.folder / "german", "one", "two", *common)
    by_name = cli("generate", "one", "two", "--adapter", "german", *common)
    assert by_path.exit_code == 0, by_path.stderr
    assert by_path.stdout == by_name.stdout
    assert by_path.stdout.startswith("> one\n")


def test_the_base_is_shown_beside_it(cli, served):
    words = ("hello", "--base", "--url", served.server.url, "--max-new-tokens", 3)
    result = cli("generate", "german", *words)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "> hello" and {"[adapter]", "[base alone]"} <= set(lines)


def test_labels_pairs_and_tags_are_those_of_the_server(cli, served):
    url = ("--url", served.server.url)
    mood = cli("generate", "mood", "a good film", *url)
    assert mood.stdout.splitlines()[0].split() == ["label", "probability", "text"]
    pairs = cli("generate", "pairs", "the sky\tthe sun", *url)
    assert pairs.exit_code == 0, pairs.stderr
    tags = cli("generate", "tags", "Anna lives in Oslo", *url)
    assert tags.exit_code == 0 and "Oslo" in tags.stdout
    assert "Text 1 is not a pair" in cli("generate", "pairs", "the sky", *url).stderr


def test_what_the_server_does_not_have_is_refused(cli, served):
    result = cli("generate", "germen", "x", "--url", served.server.url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Did you mean 'german'?" in result.stderr
    result = cli("generate", "mood", "x", "--base", "--url", served.server.url)
    assert result.exit_code == 2
    assert "--base cannot be shown beside 'mood': got a model for SEQ_CLS" in result.stderr
    result = cli("generate", "german", "x", "--url", "http://127.0.0.1:9")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
