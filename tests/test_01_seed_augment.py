import importlib
import json

import pytest
from fake_server import FakeServer, command

from autoif import families, files, replies
from autoif.files import UserError
from autoif.flags import call

stage = importlib.import_module("01_seed_augment")


@pytest.mark.parametrize(
    "text",
    [
        "- Use no commas\n- End with a question",
        "Here are some:\n\n* Use no commas\n* End with a question\n\nHope this helps!",
        "1. Use no commas\n2. End with a question",
        "1) Use no commas\n2) End with a question",
        "(1) Use no commas\n(2) End with a question",
        "**1.** Use no commas\n**2.** End with a question",
        '• **Use no commas**\n• "End with a question"',
        '```json\n["Use no commas", "End with a question"]\n```',
        'Sure:\n[\n  "Use no commas",\n  "End with a question"\n]\nDone.',
        "**1. Use no commas**\n**2. End with a question**",
        "- **Commas:** Use no commas\n- **Ending**: End with a question",
        "Use no commas\nEnd with a question",
        "1、Use no commas\n2、End with a question",
        "- - Use no commas\n- -=- End with a question",
        "- 1. Use no commas\n- 2) End with a question",
        "['Use no commas', 'End with a question']",
        "```python\nconstraints = [\n    'Use no commas',\n    \"End with a question\",\n]\n```",
        '{"constraints": ["Use no commas", "End with a question"]}',
        'Here:\n{\n  "1": "Use no commas",\n  "2": "End with a question"\n}',
        '[{"id": 1, "rule": "Use no commas"}, {"id": 2, "rule": "End with a question"}]',
        '{"constraint": "Use no commas", "kind": "signs"}\n{"constraint": "End with a question"}',
        '[\n{"id": "A", "it": "Use no commas"},\n{"id": "B", "it": "End with a question"},\n{"i',
        '{"it": {"list": [{"text": "Use no commas"}, {"text": "End with a question"}]}, "n": "2"}',
        "# | Constraint\n---|:---\n1 | Use no commas\n2 | End with a question",
        "<ul><li>Use no commas</li> <li>End with a question</li></ul>",
        "- [ ] Use no commas\n- [ ] End with a question",
        "Constraint 1: Use no commas\nConstraint 2: End with a question",
        "| # | Constraint |\n|---|:---|\n| 1 | Use no commas |\n| 2 | End with a question |",
        "<list>\n<item>Use no commas</item>\n<item>End with a question</item>\n</list>",
        "<item>\nUse no commas\n</item>\n<item>\nEnd with a question\n</item>",
        "- Punctuation: Use no commas\n- Last line: End with a question",
    ],
)
def test_a_list_is_read_in_every_shape_that_models_write(text):
    assert replies.items(text) == [
        "Use no commas",
        "End with a question",
    ]


def test_what_one_constraint_of_a_list_has_before_a_colon_is_no_title():
    assert replies.items("- Begin with: The end\n- Use no commas")[0] == "Begin with: The end"


def test_quotes_that_belong_to_the_constraint_stay():
    assert replies.clean('Include the word "because"') == 'Include the word "because"'


def test_a_json_list_inside_a_constraint_is_no_list_of_constraints():
    text = '- Return a JSON array such as ["red", "blue"]\n- End the answer with ["END"]'
    assert replies.items(text) == [
        'Return a JSON array such as ["red", "blue"]',
        'End the answer with ["END"]',
    ]
    nested = '- Use no commas\n- Answer with an object such as\n  {"answer": "red"}'
    assert replies.items(nested) == ["Use no commas", "Answer with an object such as"]


def test_openings_closings_and_refusals_are_no_constraints_but_counted_drops(tmp_path):
    texts = [
        "I'm sorry, but I can't help with that.",
        "Here are some constraints:\nUse no commas\nLet me know if you need more!",
        "Sure! New constraints for you:\nUse no colons\nI'm unable to write more.",
        "- I cannot write more than one.\n- Use no dashes",
    ]
    with FakeServer(lambda messages, request: texts[len(server.requests) % 4]) as server:
        rows = list(files.read(run(tmp_path, server, "--concurrency", 1)))
    added = [row["instruction"] for row in rows if row["source"] == "augmented"]
    assert sorted(added) == ["Use no colons", "Use no commas", "Use no dashes"]
    stats = json.loads((tmp_path / "stats.json").read_text())["01_seed_augment"]
    assert stats["dropped"] == {"prose": 6}


def test_the_last_line_of_an_answer_that_was_cut_off_is_no_constraint(tmp_path):
    with FakeServer(lambda messages, request: "- Use no commas\n- Use no co") as server:
        server.finish_reason = "length"
        rows = list(files.read(run(tmp_path, server)))
    added = [row["instruction"] for row in rows if row["source"] == "augmented"]
    assert added == ["Use no commas"]


@pytest.mark.parametrize(
    "text",
    [
        "Begin each line with *",
        "Wrap the answer in ```",
        "Name the method __init__",
        "Use `code` or _",
        "Begin and end with **",
        "Separate sections with ***",
    ],
)
def test_a_symbol_that_a_constraint_is_about_stays(text):
    assert replies.clean(text) == text


@pytest.mark.parametrize(
    "one, other",
    [
        ('End the answer with "!"', 'End the answer with "?"'),
        ("Separate the items with ';' only", "Separate the items with '|' only"),
        ("Put the last word in (parentheses)", "Put the last word in [parentheses]"),
        ("Begin every line with >", "Begin every line with #"),
    ],
)
def test_constraints_that_differ_in_a_symbol_are_different(one, other):
    assert (
        families.normalized(one) != families.normalized(other)
        and families.near_duplicates([one, other], 0.5) == {}
    )


def test_punctuation_makes_no_difference():
    assert families.normalized('Use no commas, ever: "no".') == families.normalized(
        "use no commas ever 'no'"
    )
    assert (
        families.near_duplicates(
            ["Start with A and end with Z", "Start with Z and end with A"], 0.5
        )
        == {}
    )


def test_constraints_that_no_function_can_check_are_named_as_such():
    for instruction in (
        "Translate your answer into Pig Latin",
        "Use a metaphor in each sentence",
        "Write in a sad tone",
    ):
        assert stage.drop_reason(instruction, 200, True) == "style, metaphor or translation"
    assert stage.drop_reason("Use at most 20 words", 200, True) is None
    assert stage.drop_reason("---", 200, True) == "empty"
    assert stage.drop_reason("word " * 50, 200, True) == "over-long"


@pytest.mark.parametrize(
    "instruction",
    [
        'Do not use the word "famous"',
        'Use the word "metaphor" twice',
        "Do not use formal greetings",
        "Mention the word sarcasm at least once",
        "Begin with 'As if you were there'",
        "End the answer with “formally yours”",
    ],
)
def test_words_that_a_constraint_only_mentions_are_no_style(instruction):
    assert stage.drop_reason(instruction, 200, True) is None


@pytest.mark.parametrize(
    "instruction",
    [
        "Write formally",
        "Use informal language",
        "Answer in a formal style",
        'Write in the style of "Moby Dick"',
        "Quote a famous person",
        'Use a "simile" or a metaphor',
    ],
)
def test_style_that_is_asked_for_is_dropped_unless_the_filter_is_off(instruction):
    assert stage.drop_reason(instruction, 200, True) == "style, metaphor or translation"
    assert stage.drop_reason(instruction, 200, False) is None


def test_the_prompt_shows_what_is_not_wanted_and_none_of_it_would_pass_for_format():
    unwanted = stage.AUGMENT_PROMPT.partition("So none like")[2]
    assert len([line for line in unwanted.splitlines() if line.startswith("- ")]) >= 4
    assert not {families.normalized(seed) for seed in stage.SEEDS} & set(
        map(families.normalized, unwanted.splitlines())
    )


def test_near_duplicates_are_dropped_but_not_those_that_differ_in_a_number():
    rows = [
        "Use at most 20 words in the answer",
        "Use at most 30 words in the answer",
        "In the answer, use at most 20 words",
    ]
    assert families.near_duplicates(rows, 0.7) == {2: 0}


def test_what_is_near_a_seed_is_dropped_though_the_seed_has_a_twin_itself():
    rows = ["Use at most two commas", "Use at most two commas in it", "At most two commas in it"]
    assert families.near_duplicates(rows, 0.75) == {1: 0}
    assert families.near_duplicates(rows, 0.75, stay=2) == {1: 0, 2: 1}


def test_there_are_36_seeds_and_all_are_distinct():
    assert len({families.normalized(seed) for seed in stage.SEEDS}) == 36


def run(tmp_path, server, *flags):
    out = tmp_path / "01.jsonl"
    call(stage.main, command(*flags, model="m", base_url=server.url, out=out, k=4))
    return out


def test_seeds_come_first_and_every_loss_is_accounted_for(tmp_path, capsys):
    texts = [
        "- Use no commas\n- Use no commas\n- Use a metaphor",
        "- End with a question",
        "- Only emojis please",
        "nothing: ",
    ]
    with FakeServer(lambda messages, request: texts[len(server.requests) % 4]) as server:
        out = run(tmp_path, server, "--concurrency", 1)
    rows = list(files.read(out))
    assert [row["source"] for row in rows[:36]] == ["seed"] * 36 and {
        "id",
        "instruction",
        "source",
    } == set(rows[0])
    stats = json.loads((tmp_path / "stats.json").read_text())["01_seed_augment"]
    assert stats["in"] == stats["kept"] + sum(stats["dropped"].values())
    assert stats["dropped"] == {"exact duplicate": 1, "style, metaphor or translation": 1}
    assert "01_seed_augment: " in capsys.readouterr().out


def test_each_request_shows_its_own_sample_of_the_seeds(tmp_path):
    with FakeServer(lambda messages, request: "- x y z") as server:
        run(tmp_path, server)
    assert len({request["messages"][0]["content"] for request in server.requests}) == 4


def test_the_output_is_the_same_whatever_the_concurrency(tmp_path):
    def answer(messages, request):
        return f"- Use exactly {sum(map(ord, messages[0]['content'])) % 97} words"

    outputs = []
    for concurrency in ("1", "8"):
        folder = tmp_path / concurrency
        with FakeServer(answer) as server:
            outputs.append(run(folder, server, "--concurrency", concurrency).read_bytes())
    assert outputs[0] == outputs[1]


def test_the_style_filter_can_be_switched_off(tmp_path):
    with FakeServer(lambda messages, request: "- Use a metaphor") as server:
        rows = list(files.read(run(tmp_path, server, "--no-style-filter")))
    assert "Use a metaphor" in [row["instruction"] for row in rows]


def test_seeds_that_are_no_text_are_named(tmp_path):
    (tmp_path / "seeds").write_bytes(b"\xff\xfe\x00")
    for path, words in ((tmp_path / "seeds", "is not UTF-8"), (tmp_path, "is a directory")):
        with pytest.raises(UserError, match=words):
            call(stage.main, command(model="m", seeds=path, out=tmp_path / "x.jsonl"))


def test_a_missing_seed_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no/such/file does not exist"):
        call(stage.main, command(model="m", seeds="no/such/file", out=tmp_path / "x.jsonl"))
