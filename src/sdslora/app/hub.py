"""A quick check that a name is on the Hugging Face Hub, before anything is loaded.

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
