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


def test_a_list_behind_brackets_that_nothing_closes_is_read():
    assert replies.items("[\n" * 20 + '["Use no commas", "Use no dots"]') == [
        "Use no commas",
        "Use no dots",
    ]
