from __future__ import annotations

import json

import pytest

from services.conversion.file.document import NESTING_MAX, Document, DocumentError, List, Mapping, read_document


def yaml(text: str) -> Document:
    return read_document(text.encode(), "x.yaml")


def as_json(text: str) -> Document:
    return read_document(text.encode(), "x.json")


@pytest.mark.parametrize(
    "word", ["007", "no", "yes", "1.10", "true", "0x1F", "1e3", "2024-01-01", ".inf", "1_000", "0o7"]
)
def test_every_yaml_word_that_is_not_null_stays_the_text_that_was_written(word: str) -> None:
    assert yaml(f"{word}: {word}").value == {word: word}
    assert yaml(f"[{word}]").value == [word]


@pytest.mark.parametrize("word", ["", "~", "null", "Null", "NULL"])
def test_yaml_null_is_null_unless_it_is_quoted_or_a_key(word: str) -> None:
    assert yaml(f"a: {word}").value == {"a": None}
    assert yaml(f"a: '{word}'").value == {"a": word}
    assert word == "" or yaml(f"{word}: a").value == {word: "a"}


@pytest.mark.parametrize("word", ["7", "-1.10", "1e3", "true", "false", "0.5E-7"])
def test_every_json_word_that_is_not_null_stays_the_text_that_was_written(word: str) -> None:
    assert as_json(f'{{"a": [{word}, null]}}').value == {"a": [word, None]}


def test_json_is_what_the_json_module_reads() -> None:
    value = {'ä\n"\\': [["\U0001f600", ""], {}, [], {"b": None}], "c": {"d": {"e": "f"}}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=2), " \t\r\n" + json.dumps(value)):
        assert as_json(text).value == value


@pytest.mark.parametrize(
    "text", ["[1]", "[1,2]", "[ 1 ,\t-2.50e+3 ]", "[1, 2,\n3]", "[\n1\n]", "[0, -0, 0.0]", "[1, [2, 3], null, 4]"]
)
def test_lists_of_numbers_are_what_the_json_module_reads_however_they_are_spaced(text: str) -> None:
    def words(value: object) -> object:
        return [words(each) for each in value] if isinstance(value, list) else value

    expected = json.loads(text, parse_int=str, parse_float=str)
    assert as_json(text).value == words(expected)
    document = as_json(f'{{"a": {text},\n"b": 1}}')
    assert document.value == {"a": words(expected), "b": "1"}
    assert isinstance(document.value, Mapping)
    assert document.value.lines == {"a": 1, "b": text.count("\n") + 2}


@pytest.mark.parametrize(
    "text", ["[1,,2]", "[1, 2", "[1, 2}", "[1, 02]", "[1, 2.]", "[1, ٣]", "[1, 1٣]", "[1٣\n]", "[1, 2]]", "[1] [2]"]
)
def test_lists_of_almost_numbers_are_refused(text: str) -> None:
    with pytest.raises(DocumentError):
        as_json(text)


def test_lines_are_counted_in_both_languages() -> None:
    text = '{\n"a": "x",\n"b": ["y",\n\n"z"],\n"c": {"d":\n"e"}\n}'
    for document in (yaml(text), as_json(text)):
        value = document.value
        assert isinstance(value, Mapping)
        assert value.lines == {"a": 2, "b": 3, "c": 6}
        items = value["b"]
        assert isinstance(items, List)
        assert items.lines == [3, 5]
        assert document.line == 1


def test_repeated_keys_are_found_with_both_lines_and_the_first_value_is_kept() -> None:
    text = '{"a": "1",\n"b": [{"c": "2",\n"c": "3"}],\n"a": {"x": "4"}}'
    for document in (yaml(text), as_json(text)):
        assert document.value == {"a": "1", "b": [{"c": "2"}]}
        found = [(each.path, each.key, each.line_first, each.line) for each in document.repeated]
        assert found == [(("b", "0"), "c", 2, 3), ((), "a", 1, 4)]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: [b", 1, "not YAML"),
        ("a: b\n\tc: d", 2, "not YAML"),
        ("a: &x b\nc: *x", 2, "alias"),
        ("a: !!int 3", 1, "tag"),
        ("a: !!python/object/apply:os.system [x]", 1, "tag"),
        ("a\n---\nb", 2, "second document"),
        ("? [a, b]\n: c", 1, "as a key"),
        ("a: \x07", 0, "not YAML"),
        ("[" * (NESTING_MAX + 1), 1, "nested"),
    ],
)
def test_yaml_that_cannot_be_read_says_where_and_why(text: str, line: int, problem: str) -> None:
    with pytest.raises(DocumentError, match=problem) as raised:
        yaml(text)
    assert raised.value.line == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("{", 1),
        ('{\n"a":\n}', 3),
        ("[1,]", 1),
        ("[1 2]", 1),
        ("[1}", 1),
        ("[1]]", 1),
        ("{1: 2}", 1),
        ('{"a" 1}', 1),
        ('{"a": 1,}', 1),
        ('{"a": 1 "b": 2}', 1),
        ("[nan]", 1),
        ("[-inf]", 1),
        ("{NaN: 1}", 1),
        ("[01]", 1),
        ("[1.]", 1),
        ("[.5]", 1),
        ("[+1]", 1),
        ("[cat]", 1),
        ("['cat']", 1),
        ('\n"a\nb"', 2),
        ('"\\ud800"', 1),
        ('"\\x"', 1),
        ('"a', 1),
        ('1 "a"', 1),
        ("[" * (NESTING_MAX + 1), 1),
    ],
)
def test_json_that_cannot_be_read_says_where(text: str, line: int) -> None:
    with pytest.raises(DocumentError) as raised:
        as_json(text)
    assert raised.value.line == line


def test_numbers_that_are_not_finite_are_read_as_python_writes_them() -> None:
    values = [float("nan"), [float("inf")], {"x": float("-inf")}, 1.5]
    assert as_json(json.dumps(values, indent=1)).value == ["NaN", ["Infinity"], {"x": "-Infinity"}, "1.5"]


def test_what_is_not_utf_8_says_where() -> None:
    with pytest.raises(DocumentError, match="UTF-8") as raised:
        read_document("a: b\nc: ä".encode("latin-1"), "x.yml")
    assert raised.value.line == 2


def test_a_byte_order_mark_does_no_harm() -> None:
    for name in ("x.yaml", "x.JSON"):
        assert read_document(b'\xef\xbb\xbf{"a": "b"}', name).value == {"a": "b"}


def test_an_empty_yaml_file_is_null() -> None:
    assert yaml("").value is None
    assert yaml("# nothing\n").value is None
