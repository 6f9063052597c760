"""Quick questions to the Hugging Face Hub, before anything is loaded.

``from_pretrained`` and ``load_dataset`` retry for about half a minute without a network. A single
request with a short time limit answers at once.
"""

from typing import Literal

from .errors import UserError, first_line

TIMEOUT = 10.0  # seconds


def check(kind: Literal["model", "dataset"], name: str, revision: str | None = None) -> bool:
    """Return whether the Hub holds ``name``; False where the Hub cannot be reached.

    Raises:
        UserError: where the Hub answers that it does not exist, or that the user has no access.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.HF_HUB_OFFLINE:
        return False
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        ask(name, revision=revision, timeout=TIMEOUT)
    except HFValidationError as error:
        raise UserError(
            f"{kind} {name!r} is neither an existing path nor a valid Hub id ({first_line(error)})"
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status is not None and status >= 500:
            return False
        raise UserError(
            f"{kind} {name!r} is not on the Hugging Face Hub, or not open to you: "
            f"{first_line(error)}. Check the spelling; a private or gated one needs `hf auth login`"
        ) from error
    except Exception:  # a network error, whose type depends on the HTTP client in use
        return False
    return True


def require_write(name: str | None, token: str) -> None:
    """Check that a token may write to the repository, as far as the Hub can be asked.

    Args:
        name: the repository, with or without its owner; None for one of the user's own.
        token: the user's.

    Raises:
        UserError: where the token is not valid or only reads, or the owner is another one.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        user = HfApi().whoami(token)
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", 500) >= 500:
            return
        raise UserError(
            "training.push_to_hub: the Hugging Face Hub does not accept the token: log in again "
            "with `hf auth login`, or set HF_TOKEN"
        ) from error
    except Exception:  # a network error, whose type depends on the HTTP client in use
        return
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(
            "training.push_to_hub: the token can only read; make one that writes, and log in with "
            "`hf auth login`"
        )
    owner, slash, _ = (name or "").partition("/")
    owners = [user["name"], *(group["name"] for group in user.get("orgs", ()))]
    if slash and owner not in owners:
        raise UserError(
            f"training.hub_model_id: the token belongs to {user['name']}, who cannot write to "
            f"{owner}; choose one of {', '.join(owners)}"
        )
