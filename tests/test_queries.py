"""Query files as people have them: what is a query in each, and what is refused with its place."""

import json

import pytest
from langdetect import detector_factory

from autoif import queries
from autoif.files import UserError

ASKED = ["Why do cats sleep for most of the day?", "How does one bake a simple bread?"]


def read(tmp_path, name: str, content: str | bytes) -> list[str | None]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row["query"] for row in queries.read(str(path))]


def turn(text: object, role: str = "user") -> dict:
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    "record, query",
    [
        (ASKED[0], ASKED[0]),
        ({"query": ASKED[0]}, ASKED[0]),
        ([turn("Be kind.", "system"), turn(ASKED[0]), turn("So.", "assistant")], ASKED[0]),
        ({"messages": [turn("Hello!", "assistant"), turn(ASKED[0], "User")]}, ASKED[0]),
        ({"conversations": [{"from": "Human", "value": ASKED[0]}]}, ASKED[0]),
        (
            {"messages": [turn([{"type": "text", "text": "Why do "}, "cats purr?"])]},
            "Why do cats purr?",
        ),
        # what asks nothing, or asks about more than its text, is counted and not asked
        (
            {"messages": [turn([{"type": "image_url"}, {"type": "text", "text": "What is it?"}])]},
            None,
        ),
        ({"messages": [turn(None)]}, None),
        ({"conversations": 5}, None),
        ({"conversations": {"from": "human", "value": "x"}}, None),
        ({"messages": ["How?", None]}, None),
        ({"query": None, "langdetect": 5, "split": []}, None),
        (None, None),
        (7, None),
        ([], None),
    ],
)
def test_a_record_has_its_query_in_every_usual_form_and_an_odd_one_ends_nothing(
    tmp_path, record, query
):
    rows = [ASKED[1], record, {"query": ASKED[1]}]
    wanted = [ASKED[1], query, ASKED[1]]
    assert read(tmp_path, "array.json", json.dumps(rows)) == wanted
    assert read(tmp_path, "rows.jsonl", "\n\n".join(map(json.dumps, rows))) == wanted
    kept, dropped = queries.load(str(tmp_path / "rows.jsonl"), 5, 300, "any", 0.0)
    assert sum(dropped.values()) == 3 - len(kept)
    assert dropped["no human turn"] == (query is None)


def test_a_list_of_messages_a_line_is_no_array(tmp_path):
    lines = "\n".join(json.dumps([turn(text), turn("So.", "assistant")]) for text in ASKED)
    assert read(tmp_path, "rows.jsonl", lines) == read(tmp_path, "rows", lines) == ASKED


@pytest.mark.parametrize("first", ["[Urgent] Why is the sky blue?", "{name}, why is it dark?"])
def test_a_text_file_is_lines_of_text_whatever_its_first_sign(tmp_path, capsys, first):
    assert read(tmp_path, "queries.txt", f"{first}\n\n{ASKED[0]}\n") == [first, ASKED[0]]
    assert f"begins with {first[0]!r} and is read as lines of text" in capsys.readouterr().err


def test_what_is_taken_for_json_says_so_where_it_is_none(tmp_path):
    with pytest.raises(UserError, match=r"begins with '\[', as a JSON array does.*named \.txt"):
        read(tmp_path, "queries", "[Urgent] Why is the sky blue?\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:2 is no JSON .*mend or delete.*named \.txt"):
        read(tmp_path, "rows.jsonl", '{"query": "a"}\n{name}, why?\n')


def test_a_table_is_read_by_its_column(tmp_path):
    table = '\ufeffid,Question\n1,"Why do cats, and dogs,\n\nsleep?"\n2,How?\n'
    wanted = ["Why do cats, and dogs,\n\nsleep?", "How?"]
    assert read(tmp_path, "table.csv", table) == wanted
    assert read(tmp_path, "table.tsv", "prompt\tquery\nno\tyes\n") == ["yes"]
    with pytest.raises(UserError, match="has no column query, question, prompt .it has id, text."):
        read(tmp_path, "table.csv", "id,text\n1,How?\n")


@pytest.mark.parametrize(
    "name, content",
    [
        ("queries.txt", "One query\nWhere is a café?\nAnother\n"),
        ("queries.csv", "query\nWhere is a café?\n"),
        ("rows.jsonl", '{"query": "a"}\n{"query": "Where is a café?"}\n'),
        ("array.json", '[{"query": "a"},\n {"query": "Where is a café?"}]\n'),
    ],
)
def test_what_is_no_utf8_is_named_with_line_and_byte_and_never_asked(tmp_path, name, content):
    assert "Where is a café?" in read(tmp_path, name, content)
    with pytest.raises(UserError, match=rf"{name}:2 is not UTF-8 .the byte 0xe9 after .*a caf"):
        read(tmp_path, name, content.encode("cp1252"))
    with pytest.raises(UserError, match="UTF-8"):
        read(tmp_path, name, content.encode("utf-16"))


def test_an_array_that_breaks_off_within_a_character_gives_its_whole_records(tmp_path, capsys):
    text = json.dumps([ASKED[0], "Où est le café?"], ensure_ascii=False).encode()
    assert read(tmp_path, "array.json", text[: text.index(b"\xa9")]) == ASKED[:1]
    assert "breaks off after 1 whole records" in capsys.readouterr().err


def test_ctrl_c_while_languages_are_loaded_is_no_language(tmp_path, monkeypatch):
    """langdetect takes any exception there for a broken profile, and the query went as foreign."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(detector_factory, "_factory", None)
    monkeypatch.setattr(detector_factory, "LangProfile", interrupt)
    (tmp_path / "queries.txt").write_text("What is the tallest mountain on earth?\n")
    with pytest.raises(KeyboardInterrupt):
        queries.load(str(tmp_path / "queries.txt"), 20, 300, "en", 0.1)
