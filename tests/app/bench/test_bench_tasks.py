import json
import string
from itertools import islice

import pytest

from sdslora.app.bench import corpus
from sdslora.app.bench.cipher import Cipher
from sdslora.app.bench.family import TASKS, TEXT, Family
from sdslora.app.cache import path_of
from sdslora.app.errors import UserError

TRAIN_ROWS = 1300
HELD_ROWS = 300


def words_of(rows: list[dict[str, str]]) -> set[str]:
    """Words of the questions."""
    return {w for row in rows if "question" in row for w in row["question"][2:-1].split()}


def test_the_story_is_text_in_printable_ascii() -> None:
    text = " ".join(corpus.paragraphs())
    assert set(text) <= {chr(code) for code in range(32, 127)}
    assert len(text.split()) > 4000
    assert "Little though they seem to think of it" in text
    assert "Gutenberg" not in text


@pytest.mark.parametrize(
    ("letter", "answer"),
    [
        ("c", "lazy zoo"), ("u", "LAZY ZOO"), ("r", "ooz yzal"), ("s", "alyz ooz"),
        ("1", "mbaz app"), ("2", "ncba bqq"), ("3", "odcb crr"),
    ],
)  # fmt: skip
def test_tasks(letter: str, answer: str) -> None:
    assert TASKS[letter]("lazy zoo") == answer


def test_rows_of_the_family() -> None:
    family = Family(rows=5)
    rows = family.held_out_rows()
    assert [row["task"] for row in rows] == [*TASKS, TEXT] * 5
    for row in rows:
        assert row["text"].startswith(f"{row['task']}:")
        if row["task"] == TEXT:
            assert any(row["text"][2:] in paragraph for paragraph in corpus.paragraphs())
            assert 0 < len(row["text"][2:]) <= family.text_length
        else:
            assert row["text"] == row["question"] + row["answer"]
            phrase = row["question"][2:-1]
            assert row["answer"] == TASKS[row["task"]](phrase)
            assert family.shortest <= len(phrase) <= family.longest


def test_the_held_out_words_are_not_trained_on() -> None:
    family = Family()
    held = words_of(family.held_out_rows())
    texts = list(islice(family.texts(seed=0), 4000))
    trained = {w for t in texts if t[0] != TEXT for w in t[2:].split("=")[0].split()}
    assert len(held) > 200
    assert len(trained) > 2000
    assert not held & trained


def test_the_held_out_text_is_not_trained_on() -> None:
    held, trained = (set(source.paragraphs) for source in Family()._split())
    assert held
    assert not held & trained
    assert held | trained == set(corpus.paragraphs())


def test_training_rows_repeat_with_the_seed() -> None:
    first, again, other = (list(islice(Family().texts(seed), 50)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_every_task_is_trained_on() -> None:
    begun = [text[0] for text in islice(Family().texts(seed=0), 800)]
    assert set(begun) == {*TASKS, TEXT}
    assert min(begun.count(letter) for letter in set(begun)) > 60


def test_family_file_has_the_field_text() -> None:
    rows = json.loads(path_of(Family(rows=3)).read_text())
    assert len(rows) == 3 * (len(TASKS) + 1)
    assert all(row["text"] for row in rows)


def test_cipher_keys_are_new_permutations() -> None:
    letters = string.ascii_lowercase
    shifts = {letters[by:] + letters[:by] for by in range(26)}
    for key in Cipher().keys:
        assert sorted(key) == list(letters)
        assert key not in shifts
    assert Cipher().letter not in {*TASKS, TEXT}


def test_cipher_rows() -> None:
    cipher = Cipher()
    rows = json.loads(path_of(cipher).read_text())
    assert len(rows) >= TRAIN_ROWS + HELD_ROWS
    assert len({row["question"] for row in rows}) == len(rows)
    text = "  ".join(corpus.paragraphs()).replace("'", "").lower()
    text = " ".join("".join(c if c.isalpha() else " " for c in text).split())
    for row in rows[:200]:
        assert row["question"][:2] == f"{cipher.letter}:"
        assert row["question"][-1] == "="
        assert f" {row['question'][2:-1]} " in f" {text} "


def test_cipher_can_be_undone() -> None:
    cipher = Cipher()
    for row in cipher.all_rows()[:100]:
        undone = [
            string.ascii_lowercase[cipher.keys[i % len(cipher.keys)].index(c)] if c != " " else " "
            for i, c in enumerate(row["answer"])
        ]
        assert "".join(undone) == row["question"][2:-1]


def test_cipher_by_hand() -> None:
    swapped = "badcfehgjilknmporqtsvuxwzy"
    cipher = Cipher(keys=(swapped, string.ascii_lowercase))
    # places 0, 2 and 4 (a, c, d) are swapped, place 1 (b) is not
    assert cipher.encipher("abc d") == "bbd c"


def test_cipher_of_too_many_rows() -> None:
    with pytest.raises(UserError, match="such phrases, not 1000000"):
        Cipher(rows=1_000_000).all_rows()
