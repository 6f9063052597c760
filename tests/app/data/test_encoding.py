import pytest

import tiny
from sdslora.app.config.spec import DataSpec
from sdslora.app.data.encoding import encode, encode_whole, within
from sdslora.app.data.templates import Example
from sdslora.app.errors import UserError

SPEC = DataSpec("rows.json")
CHAT = DataSpec("rows.json", chat=True, system="Add.")
EXAMPLES = [Example("1+1=", "2", {}), Example("12+30=", " 42", {})]


def chat_tokenizer():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    return tokenizer


def test_prompt_completion_and_end() -> None:
    tokenizer = tiny.tokenizer()
    [_, row] = encode(EXAMPLES, tokenizer, SPEC)
    assert tokenizer.decode(row.prompt) == "12+30="
    assert tokenizer.decode(row.completion) == " 42</s>"
    assert len(row) == 6 + 4
    columns = row.training_row()
    assert columns["input_ids"] == row.prompt + row.completion
    assert columns["completion_mask"] == [0] * 6 + [1] * 4


def test_chat() -> None:
    tokenizer = chat_tokenizer()
    [row, _] = encode(EXAMPLES, tokenizer, CHAT)
    assert tokenizer.decode(row.prompt) == "[system]Add.[user]1+1=[assistant]"
    assert tokenizer.decode(row.completion) == "2</s>"


def test_chat_template_file(tmp_path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = tiny.tokenizer()
    spec = DataSpec("rows.json", chat=True, chat_template=str(path))
    [row, _] = encode(EXAMPLES, tokenizer, spec)
    assert tokenizer.decode(row.prompt) == "<user>1+1=</s>\n<assistant>"
    assert tokenizer.decode(row.completion) == "2</s>", "what follows the end is not the answer's"


def test_chat_without_template() -> None:
    with pytest.raises(UserError, match="chat template"):
        encode(EXAMPLES, tiny.tokenizer(), CHAT)


def test_chat_template_that_rewrites_the_prompt() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="renders a prompt differently"):
        encode(EXAMPLES, tokenizer, DataSpec("rows.json", chat=True))


def test_empty_prompt_and_missing_end() -> None:
    with pytest.raises(UserError, match="row 1 has an empty prompt"):
        encode([EXAMPLES[0], Example("", "2", {})], tiny.tokenizer(), SPEC)
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"training\.eos_token"):
        encode(EXAMPLES, tokenizer, SPEC)


def test_overlong_rows(capsys: pytest.CaptureFixture[str]) -> None:
    rows = encode(EXAMPLES, tiny.tokenizer(), SPEC)
    assert within(rows, 10, "error", "training") == rows
    assert within(rows, None, "error", "training") == rows
    with pytest.raises(UserError, match=r"1 of 2 training rows .*=9 .*longest has 10"):
        within(rows, 9, "error", "training")
    assert within(rows, 9, "drop", "training") == rows[:1]
    assert "1 of 2 training rows" in capsys.readouterr().out
    with pytest.raises(UserError, match="every one"):
        within(rows, 3, "drop", "training")


@pytest.mark.parametrize("chat", [True, False])
def test_an_answer_that_contains_the_end_is_not_cut_there(chat) -> None:
    tokenizer, spec = chat_tokenizer(), DataSpec("rows.json", chat=chat)
    cut = Example("Strike it:", "<s>old</s> and new", {}, place="rows.json: data row 17")
    with pytest.raises(UserError, match=r"^rows.json: data row 17: the completion contains '</s>'"):
        encode([EXAMPLES[0], cut], tokenizer, spec)
    [row] = encode([Example("1+1=", "2</s>", {})], tokenizer, spec)
    assert tokenizer.decode(row.completion) == "2</s>", "at the end it is the end"


@pytest.mark.parametrize(("prompt", "completion"), [("1</s>+1=", "2"), ("1+1=", "<pad>2")])
def test_control_tokens_in_a_chat_come_from_the_template_alone(prompt, completion) -> None:
    row = Example(prompt, completion, {}, place="rows.json: data row 17")
    with pytest.raises(UserError, match=r"^rows\.json: data row 17: the .* as a control token"):
        encode([row], chat_tokenizer(), DataSpec("rows.json", chat=True))
    [whole] = encode([row], tiny.tokenizer(), SPEC)
    assert tiny.tokenizer().decode(whole.prompt) == prompt, "data.prompt may write them itself"


def test_whole_texts_that_contain_the_end() -> None:
    with pytest.raises(UserError, match="data row 0: the completion contains"):
        encode_whole([Example("a", "b</s>c", {})], tiny.tokenizer())


def test_an_empty_prompt_is_named_by_its_row_in_the_file() -> None:
    """Rows that are held out do not count it down."""
    with pytest.raises(UserError, match=r"rows\.json: data row 25 has an empty prompt"):
        encode(
            [EXAMPLES[0], Example("", "2", {}, place="rows.json: data row 25")],
            tiny.tokenizer(),
            SPEC,
        )
