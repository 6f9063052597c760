"""What is read from a response: cases checked by hand against the reference's rules."""

from typing import Any

import pytest

from sdslora.app.evaluation.tasks import commonsense, gsm8k, hendrycks, humaneval, metamath


def filtered(steps: list, response: str, doc: dict[str, Any]) -> Any:
    """``response`` through filters of the harness's kind, one after the other."""
    responses = [[response]]
    for step in steps:
        responses = step(responses, [doc])
    return responses[0][0]


ANSWERS = "answer1|answer2|answer3|answer4|answer5"
COMMONSENSE = [
    # pattern, response, by LLM-Adapters, by DoRA
    ("true|false", "the correct answer is true", "true", "true"),
    ("true|false", "the correct answer is false", "false", "false"),
    ("true|false", "True", "", ""),
    ("true|false", "TRUE or false", "false", "false"),
    ("true|false", "untrue, so false", "true", "true"),
    ("true|false", "false. No: true", "false", "false"),
    ("true|false", "", "", ""),
    ("true|false", "yes", "", ""),
    ("true|false", "true\n\n### Response:\nfalse", "true", "false"),
    ("true|false", "\n### Response:\nfalse", "", "false"),
    ("true|false", "true\n### Response:\nhm\n### Response:\nno", "true", ""),
    ("solution1|solution2", "the correct answer is solution2", "solution2", "solution2"),
    ("solution1|solution2", "Solution1", "", ""),
    ("solution1|solution2", "solution 1", "", ""),
    ("solution1|solution2", "solution3 or solution12", "solution1", "solution1"),
    (ANSWERS, "answer5", "answer5", "answer5"),
    (ANSWERS, "answer6", "", ""),
    (ANSWERS, "the answer answer42", "answer4", "answer4"),
    ("ending1|ending2|ending3|ending4", "Ending1, I mean ending3", "ending3", "ending3"),
    ("option1|option2", "option2\n                ### Response:", "option2", ""),
]


@pytest.mark.parametrize(("pattern", "response", "adapters", "dora"), COMMONSENSE)
def test_commonsense(pattern: str, response: str, adapters: str, dora: str) -> None:
    doc = {"pattern": pattern}
    assert filtered([commonsense.first_part, commonsense.first_match], response, doc) == adapters
    assert filtered([commonsense.last_part, commonsense.first_match], response, doc) == dora


GSM8K = [
    # the right answer, response, read as, right by MetaMath's rule, equivalent
    ("18", "So 18.\nThe answer is: 18", 18, True, True),
    ("18", "So 18.", None, False, False),
    ("18", "The answer is 18", None, False, False),
    ("18", "The answer is:18", None, False, False),
    ("18", "The answer is: 17. The answer is: 18", 18, True, True),
    ("18", "The answer is: 18. The answer is: no", None, False, False),
    ("18", "The answer is: $18.00", 18, True, True),
    ("18", "The answer is: 18 dollars, not 20", 18, True, False),  # math-verify: the last
    ("18", "The answer is: 17.6", 18, True, False),
    ("1234", "The answer is: 1,234", 1234, True, True),
    ("12345678", "The answer is: 12,345,678", 12345, False, True),
    ("12345", "The answer is: 12,345,678", 12345, True, False),
    ("-5", "The answer is: -5", -5, True, True),
    ("5", "The answer is: +5", 5, True, False),  # math-verify knows no such sign
    ("2", "The answer is: 8/4", 2, True, True),
    ("0", "The answer is: 1/2", 0, True, False),
    ("3", "The answer is: 3/0", 3, True, False),
    ("5", "The answer is: .5", 0, False, False),
    ("5", "The answer is: /5", None, False, False),
    ("5", "The answer is: ", None, False, False),
    ("7", "The answer is: seven", None, False, False),
    ("1", "The answer is: " + 400 * "1", None, False, False),
]


@pytest.mark.parametrize(("right", "response", "read", "exact", "equivalent"), GSM8K)
def test_gsm8k_by_metamath(
    right: str, response: str, read: int | None, exact: bool, equivalent: bool
) -> None:
    answer = filtered([metamath.after_marker], response, {})
    assert gsm8k.number(answer) == read
    scores = gsm8k.process_metamath({"answer": f"#### {right}"}, [answer])
    assert scores == {"exact_match": exact, "math_verify": equivalent, "no_answer": read is None}


LORA_GA = [
    # what the data set's answer ends in, response, right, equivalent, without an answer
    ("18", "#### 18", True, True, False),
    ("18", "####18", True, True, False),
    ("18", "####\n 18", True, True, False),
    ("18", "18", False, False, True),
    ("18", "### 18", False, False, True),
    ("18", "#### 18.5", True, True, False),
    ("18", "#### 1,8", False, False, False),
    ("18", "#### 17 #### 18", False, False, False),
    ("18", "#### 18 #### 17", True, True, False),
    ("18", "#### $18", False, False, True),
    ("18", "#### eighteen", False, False, True),
    ("18", "#### 018", True, True, False),
    ("1,234", "#### 1,234", True, False, False),
    ("1,234", "#### 1234", False, True, False),
    ("1,234", "#### 1", True, False, False),
    ("-5", "#### -5", True, False, True),
    ("-5", "I do not know", True, False, True),
    ("0", "I do not know", True, False, True),
    ("0", "#### 0", True, True, False),
    ("5", "", False, False, True),
]


@pytest.mark.parametrize(("right", "response", "exact", "equivalent", "none"), LORA_GA)
def test_gsm8k_by_lora_ga(
    right: str, response: str, exact: bool, equivalent: bool, none: bool
) -> None:
    doc = {"answer": f"1+1=<<1+1=2>>2\n#### {right}"}
    answer = filtered([gsm8k.after_marks], response, {})
    scores = gsm8k.process_lora_ga(doc, [answer])
    assert scores == {"exact_match": exact, "math_verify": equivalent, "no_answer": none}


MATH = [
    # the end of the solution, response, answer, right by is_equiv, equivalent
    (r"so $\boxed{4}$.", "The answer is: 4", "4", True, True),
    (r"so $\boxed{4}$.", "The answer is: 4.", "4", True, True),
    (r"so $\boxed{4}$.", "The answer is: 4.\nMore. Text", "4", True, True),
    (r"so $\boxed{4}$.", "It is 4", None, False, False),
    (r"so $\boxed{4}$.", "The answer is: 5. The answer is: 4", "4", True, True),
    (r"so $\boxed{4}$.", "The answer is: 2+2", "2+2", False, True),
    (r"first $\boxed{1}$, then $\boxed{4}$", "The answer is: 4", "4", True, True),
    (r"$\boxed{\frac{1}{2}}$", r"The answer is: \frac{1}{2}", r"\frac{1}{2}", True, True),
    (r"$\boxed{\frac{1}{2}}$", r"The answer is: \dfrac12", r"\dfrac12", True, True),
    (r"$\boxed{\frac{1}{2}}$", "The answer is: 1/2", "1/2", True, True),
    (r"$\boxed{\frac{1}{2}}$", "The answer is: 0.5", "0.5", True, True),
    (r"$\boxed{\frac{1}{4}}$", "The answer is: 0.25", "0.25", False, True),
    (r"$\boxed{\frac{\sqrt{2}}{3}}$", r"The answer is: \frac{\sqrt2}3", None, False, True),
    (r"$\boxed{x+1}$", "The answer is: 1+x", "1+x", False, True),
    (r"$\boxed{(1,2)}$", "The answer is: (1, 2)", "(1, 2)", True, True),
    (r"$\boxed{10\%}$", "The answer is: 10", "10", True, True),
    (r"$\boxed{90^\circ}$", "The answer is: 90", "90", True, True),
    (r"$\boxed{5\text{ cm}}$", "The answer is: 5", "5", True, True),
    (r"$\boxed{x=5}$", "The answer is: 5", "5", True, True),
    (r"$\boxed{1{,}234}$", "The answer is: 1234", "1234", False, True),
    (r"$\fbox{7}$", "The answer is: 7", "7", True, True),
    (r"so $\boxed 3$.", "The answer is: 3", "3", True, True),
    (r"$\boxed{4}$", "The answer is: ", "", False, False),
    (r"$\boxed{\text{east}}$", r"The answer is: \text{west}", None, False, False),
]


@pytest.mark.parametrize(("solution", "response", "answer", "exact", "equivalent"), MATH)
def test_math(
    solution: str, response: str, answer: str | None, exact: bool, equivalent: bool
) -> None:
    doc = {"solution": solution}
    found = filtered([metamath.after_marker, hendrycks.first_sentence], response, doc)
    if answer is not None:
        assert found == answer
    scores = hendrycks.process_results(doc, [found])
    assert scores == {"exact_match": exact, "math_verify": equivalent, "no_answer": found is None}


HUMANEVAL = [
    ("def f(x):\n    return x\n", "def f(x):\n    return x"),
    ("```python\ndef f(x):\n    return x\n```", "python\ndef f(x):\n    return x"),
    ("def f(x):\n    return x\n```\n", "def f(x):\n    return x"),
    ("def f(x):\n\treturn x", "def f(x):\n    return x"),
    ("def f(x):\n  return x", "def f(x):\n    return x"),
    ("def f(x):\n return x", "def f(x):\n    return x"),
    ("def f(x):\n        return x", "def f(x):\n    return x"),
    (" def f(x):\n     return x", "def f(x):\n    return x"),
    ("  import a\n def f(x):\n     return x", "    import a\ndef f(x):\n        return x"),
    ("import a\n  def f(x):\n      return x", "import a\ndef f(x):\n    return x"),
    ("def f(x):\n\n    y = x\n   \n    return y\n\n", "def f(x):\n    y = x\n    return y"),
    ('def f(x):\n    """Doc\n    of f"""\n    return x', "def f(x):\n    return x"),
    ("def f(x):\n    '''Doc'''\n    return x", "def f(x):\n    return x"),
    ('def f(x):\n    s = """a""" + \'b\'\n    return s', "def f(x):\n    s =  + 'b'\n    return s"),
    ('def f(x):\n    """open\n    return x', 'def f(x):\n    """open\n    return x'),
    (
        "def f(x):\n  if x:\n    return 1\n  return 2",
        "def f(x):\n    if x:\n        return 1\n    return 2",
    ),
    (
        "def f(x):\n    if x:\n      return 1\n     # odd\n    return 2",
        "def f(x):\n    if x:\n            return 1\n        # odd\n    return 2",
    ),
    ("return x", "return x"),
    ("    return x", "    return x"),
    ("    return undefined", "return undefined"),
    ("x = 1   \ndef f(x):\n    return x  ", "x = 1\ndef f(x):\n    return x"),
    ("", ""),
    ("```", ""),
]


@pytest.mark.parametrize(("response", "code"), HUMANEVAL)
def test_humaneval(response: str, code: str) -> None:
    assert humaneval.completion(response) == code
