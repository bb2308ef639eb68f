"""A quick check that the Hugging Face hub answers, before its clients start to retry."""

from smollm2.errors import UserError


def require_on_hub(repo: str, kind: str, instead: str, prefix: str = "hub") -> None:
    """Raise `UserError` unless `repo` (`ORG/NAME`, of `kind` dataset or model) can be reached.

    The hub's own clients retry for half a minute and log each attempt when there is no network;
    this asks once, for at most 10 seconds. `instead` says what to type without the hub;
    `prefix` precedes the name where the user types it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        HfApi().repo_info(repo, repo_type=kind, timeout=10)
    except GatedRepoError as error:
        raise UserError(
            f"The {kind} {repo!r} is on the hub but asks for an accepted licence: accept it on its "
            f"page and run `hf auth login`, or {instead}."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"There is no public {kind} {repo!r} on the hub: expected {prefix}:ORG/NAME, as in "
            f"the address of its page. Check the spelling, or {instead}."
        ) from error
    except Exception as error:  # the class depends on the HTTP library of the hub's client
        raise UserError(
            f"The Hugging Face hub cannot be reached for the {kind} {repo!r} "
            f"({type(error).__name__}). Check the network and HF_HUB_OFFLINE, or {instead}."
        ) from error
