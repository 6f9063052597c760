import json
from dataclasses import replace

import pytest

import tiny
from sdslora.app.config.spec import DataSpec
from sdslora.app.data.examples import load_examples
from sdslora.app.data.procedural import Task
from sdslora.app.data.templates import Template
from sdslora.app.errors import UserError

PROCEDURAL = DataSpec("reasoning-gym:chain_sum", size=60, holdout=20)


def questions(examples: list) -> list[str]:
    return [example.prompt for example in examples]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_files(tmp_path, name: str) -> None:
    rows = tiny.rows(10)
    path = tiny.save_rows(tmp_path / name, rows)
    examples = load_examples(DataSpec(str(path), holdout=3))
    assert len(examples.train) == 7
    assert len(examples.validation) == 3
    got = {(e.prompt, e.completion) for e in examples.train + examples.validation}
    assert got == {(row["question"], row["answer"]) for row in rows}


def test_parquet(tmp_path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(tiny.rows(4)), path)
    assert len(load_examples(DataSpec(str(path), holdout=0)).train) == 4


def test_holdout_fraction_and_seed(data_file) -> None:
    spec = DataSpec(str(data_file), holdout=0.2)
    first, again = load_examples(spec), load_examples(spec)
    assert len(first.validation) == 20
    assert questions(first.train) == questions(again.train)
    other = load_examples(replace(spec, seed=1))
    assert questions(other.validation) != questions(first.validation)


def test_validation_file(tmp_path, data_file) -> None:
    path = tiny.save_rows(tmp_path / "held.json", tiny.rows(3, seed=9))
    examples = load_examples(DataSpec(str(data_file), validation=str(path), size=5))
    assert (len(examples.train), len(examples.validation)) == (5, 3)


def test_templates(tmp_path) -> None:
    row = {"q": {"text": "1+1", "lang": "en"}, "a": 2}
    path = tiny.save_rows(tmp_path / "rows.json", [row] * 2)
    spec = DataSpec(str(path), holdout=0, prompt="Q {{x}}: {q[text]}\n", completion=" {a}.")
    [example, _] = load_examples(spec).train
    assert (example.prompt, example.completion) == ("Q {x}: 1+1\n", " 2.")


def test_procedural_rows_never_overlap() -> None:
    # 200 possible questions for 120 rows: without the exclusion, sets of this size overlap.
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    examples = load_examples(replace(PROCEDURAL, options=options))
    train, held = questions(examples.train), questions(examples.validation)
    assert (len(train), len(held)) == (60, 20)
    assert len({*train, *held}) == 80
    blind = Task("chain_sum", options).draw(60, seed=0)
    assert {row["question"] for row in blind} & set(held), "the exclusion was not put to the test"


def test_procedural_rows_repeat_with_the_seed() -> None:
    first, again = load_examples(PROCEDURAL), load_examples(PROCEDURAL)
    assert questions(first.train) == questions(again.train)
    assert questions(load_examples(replace(PROCEDURAL, seed=5)).train) != questions(first.train)


def test_procedural_rule() -> None:
    examples = load_examples(PROCEDURAL)
    assert examples.rule is not None
    example = examples.train[0]
    assert examples.rule(f" {example.completion} ", example.row)
    assert not examples.rule("no idea", example.row)


def refused(spec: DataSpec) -> str:
    with pytest.raises(UserError) as caught:
        load_examples(spec)
    return str(caught.value)


def test_empty(tmp_path) -> None:
    for name, text in (("a.json", "[]"), ("b.jsonl", "")):
        (tmp_path / name).write_text(text)
        message = refused(DataSpec(str(tmp_path / name)))
        assert "is empty" in message
        assert name in message


def test_missing_field(tmp_path) -> None:
    rows = tiny.rows(8)
    rows[5] = {"question": "7+7=", "solution": "14"}
    message = refused(DataSpec(str(tiny.save_rows(tmp_path / "rows.jsonl", rows)), holdout=2))
    assert "row 5 has no field `answer`" in message
    assert "it has: question, solution" in message


def test_null_field_and_empty_answer(tmp_path) -> None:
    rows = [{"question": "a", "answer": None}]
    message = refused(DataSpec(str(tiny.save_rows(tmp_path / "null.json", rows)), holdout=0))
    assert "has null in `answer`, which the format question_answer needs: leave such" in message
    spec = DataSpec(str(tmp_path / "null.json"), prompt="{question}?", holdout=0)
    message = refused(spec)
    assert "field `answer`, which data.completion needs, is null: leave such rows out" in message
    rows = [{"question": "a", "answer": "b"}, {"question": "a", "answer": "  "}]
    message = refused(DataSpec(str(tiny.save_rows(tmp_path / "blank.json", rows)), holdout=0))
    assert "row 1: the completion is empty" in message


def test_unreadable_files(tmp_path) -> None:
    cases = {
        "broken.json": (b"[{", "cannot be read"),
        "broken.jsonl": (b'{"question": 1}\n{oops\n', "line 2"),
        "latin.json": (b'["\xe9"]', "cannot be read"),
        "object.json": (b'{"question": 1}', "a list of objects"),
        "strings.json": (json.dumps([{"a": 1}, "b"]).encode(), "row 1 must be an object"),
        "fake.parquet": (b"not parquet", "cannot be read"),
        "rows.xlsx": (b"a,b\n", ".json, .jsonl, .parquet"),
        "rows.parquet.gz": (b"", "must end in"),
        "broken.json.gz": (b"not gzip", "cannot be read"),
        "short.csv": (b"a,b\n1,2\n\n3\n", "line 4: 1 cells, but 2 columns"),
        "twice.csv": (b"a,a\n1,2\n", "two columns have one name"),
        "twice.json": (b'[{"a": 1, "a": 2}]', "an object has two fields 'a'"),
        "twice.jsonl": (
            b'{"a": 1}\n{"m": {"b": 1, "b": 1}}',
            "line 2: an object has two fields 'b'",
        ),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        message = refused(DataSpec(str(tmp_path / name)))
        assert words in message, message
        assert name in message


def test_paths_that_do_not_exist() -> None:
    for source in ("nowhere.jsonl", "./nowhere", "/nowhere/rows.json"):
        assert "does not exist" in refused(DataSpec(source))


def test_unknown_task_and_option() -> None:
    message = refused(DataSpec("reasoning-gym:chain_sums"))
    assert "no task `chain_sums`; did you mean `chain_sum`?" in message
    message = refused(replace(PROCEDURAL, options={"min_term": 2}))
    assert "no option `min_term`; did you mean `min_terms`?" in message
    message = refused(replace(PROCEDURAL, options={"min_terms": 5, "max_terms": 2}))
    assert "rejects {'min_terms': 5, 'max_terms': 2}" in message


def test_task_with_too_few_questions() -> None:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    message = refused(replace(PROCEDURAL, size=1000, options=options))
    assert "distinct questions" in message
    assert "1000 were asked for" in message


def test_holdout_of_everything(data_file) -> None:
    assert "leave none to train on" in refused(DataSpec(str(data_file), holdout=100))


@pytest.mark.parametrize(
    ("prompt", "completion", "words"),
    [
        ("{question", "{answer}", "not a valid template"),
        ("{}", "{answer}", "fields need names"),
        ("{question}", "yes", "names no field"),
    ],
)
def test_bad_templates(prompt: str, completion: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Template(prompt, completion)


def test_template_that_a_row_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"row 3 does not fit data\.prompt"):
        Template("{q[text]}", "{a}").render({"q": {"x": 1}, "a": 1}, 3)


def test_options_of_a_file(data_file) -> None:
    assert "data.options" in refused(DataSpec(str(data_file), options={"a": 1}))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": None}, "`m[a]` is null"),
        ({"a": float("nan")}, "`m[a]` is the number nan"),
        ({"a": float("inf")}, "`m[a]` is the number inf"),
        ({"a": ["x", "y"]}, "`m[a]` is a list: name one of its members"),
        ({"a": {"b": "x"}}, "`m[a]` is a dict"),
    ],
)
def test_values_below_the_top_level_that_are_no_text(tmp_path, value, words) -> None:
    """Python would write them as "None", "nan", "['x', 'y']"."""
    rows = [{"q": "a", "m": {"a": "1"}}, {"q": "b", "m": value}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    message = refused(DataSpec(str(path), prompt="{q}", completion="{m[a]}", holdout=0))
    assert "data row 1 does not fit data.completion" in message
    assert words in message


def test_a_top_level_number_that_is_none(tmp_path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"question": "a", "answer": NaN}]')
    assert "`answer` is the number nan" in refused(DataSpec(str(path), holdout=0))


def test_bytes_of_a_parquet_file(tmp_path) -> None:
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"question": "a", "answer": b"1"}]), path
    )
    assert "`answer` is bytes" in refused(DataSpec(str(path), holdout=0))


def test_numbers_and_words_stay_text(tmp_path) -> None:
    rows = [{"question": 1.5, "answer": True, "m": {"a": [{"b": 7}]}}]
    path = tiny.save_rows(tmp_path / "rows.json", rows)
    spec = DataSpec(str(path), prompt="{question} {m[a][0][b]}", completion="{answer}", holdout=0)
    [example] = load_examples(spec).train
    assert (example.prompt, example.completion) == ("1.5 7", "True")


def test_numbers_of_single_precision_are_written_as_they_were(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    numbers = [0.1, -2.5, 1e8, 3e-7, 33.0]
    columns = {
        "q": pa.array(numbers, pa.float32()),
        "a": pa.array(numbers, pa.float64()),
        "m": pa.array([{"x": number} for number in numbers], pa.struct([("x", pa.float32())])),
    }
    pq.write_table(pa.table(columns), path)
    spec = DataSpec(str(path), prompt="{q} {m[x]} {q:.3f}", completion="{a}", holdout=0)
    for number, example in zip(numbers, load_examples(spec).train, strict=True):
        assert example.prompt == f"{number} {number} {number:.3f}"
        assert example.completion == str(number)


def test_half_a_character_below_the_top_level(tmp_path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"q": "b", "m": {"a": "cut \ud83d"}}]))
    message = refused(DataSpec(str(path), prompt="{q}", completion="{m[a]}", holdout=0))
    assert "data row 0: data.completion holds" in message
    assert "half of a character" in message
