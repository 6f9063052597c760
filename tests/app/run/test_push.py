"""The push to the Hub, which a stand-in takes the place of."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from sdslora.app.run import plan
from sdslora.app.run.trainer import GuardedTrainer
from tiny import MakeRecipe, Run

USER = {"name": "me", "orgs": [{"name": "team"}], "auth": {"accessToken": {"role": "write"}}}


def log_in(monkeypatch: pytest.MonkeyPatch, answer: Any = USER) -> None:
    """Answer the question whose token it is; an exception is raised."""

    def whoami(self: HfApi, token: str) -> Any:
        assert token == "hf_token"
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(plan, "get_token", lambda: "hf_token")
    monkeypatch.setattr(HfApi, "whoami", whoami)


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def test_the_adapter_is_pushed(
    recipe: MakeRecipe, sdslora: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the Hub: what is asked of it is what matters."""
    pushed: list[str] = []
    made: list[str | None] = []
    log_in(monkeypatch)
    monkeypatch.setattr(
        GuardedTrainer, "init_hf_repo", lambda self, **_: made.append(self.args.hub_model_id)
    )
    monkeypatch.setattr(
        GuardedTrainer,
        "push_to_hub",
        lambda self, **_: pushed.append(record(Path(self.args.output_dir))["status"]),
    )
    path = recipe(
        training__push_to_hub=True,
        training__hub_model_id="me/adapter",
        training__hub_strategy="end",
    )
    assert sdslora("train", path, "--dry_run").status == 0
    assert made == pushed == [], "a dry run makes no repository"
    result = sdslora("train", path)
    assert result.status == 0, result.err
    assert made == ["me/adapter"]
    # the adapter, then its card with the results
    assert pushed == ["running", "finished"]


def refusal(status: int) -> HfHubHTTPError:
    response = SimpleNamespace(status_code=status, headers={}, request=None, text="")
    return HfHubHTTPError("no", response=response)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal(401), "does not accept the token"),
        ({**USER, "auth": {"accessToken": {"role": "read"}}}, "the token can only read"),
        (USER, "belongs to me, who cannot write to others; choose one of me, team"),
        (refusal(503), None),  # the Hub is down now, and may be up when it matters
        (OSError("no network"), None),
    ],
)
def test_before_the_training_it_is_known_whether_the_token_will_do(
    recipe: MakeRecipe,
    sdslora: Run,
    outline_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    words: str | None,
) -> None:
    log_in(monkeypatch, answer)
    path = recipe(
        model__name_or_path=str(outline_dir),
        training__push_to_hub=True,
        training__hub_model_id="others/adapter",
    )
    result = sdslora("train", path, "--dry_run")
    assert result.status == (2 if words else 0), result.err
    assert (words or "") in result.err
