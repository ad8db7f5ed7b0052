"""What models write, where it is hostile."""

import time

import pytest

from autoif import replies


@pytest.mark.parametrize("part", ["[", "[\n", "{\n", "['a',\n", '{"a":\n', "```\n", "[]\n", "- *"])
@pytest.mark.parametrize("read", [replies.items, replies.score])
def test_brackets_that_nothing_closes_take_no_seconds(read, part):
    began = time.process_time()
    read(part * (8000 // len(part)))
    assert time.process_time() - began < 1


@pytest.mark.parametrize("closed", ["}", ""])
def test_an_integer_of_thousands_of_digits_is_no_json(closed):
    text = '{"func": "def evaluate(response): ...", "cases": [{"input": ' + "1" * 5000 + closed
    list(replies.objects(text))
    assert replies.literal(text) is None
    assert replies.items('["a", ' + "1" * 5000 + "]") is not None


def test_code_too_deep_to_be_written_again_is_no_function():
    code = f"def evaluate(response):\n    return {'+'.join('1' * 900)} > len(response)"
    assert replies.script(code) is None and replies.script(code.replace("1+" * 890, ""))


def test_a_list_behind_brackets_that_nothing_closes_is_read():
    assert replies.items("[\n" * 20 + '["Use no commas", "Use no dots"]') == [
        "Use no commas",
        "Use no dots",
    ]
