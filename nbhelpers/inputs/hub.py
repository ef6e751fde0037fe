"""Ask the Hugging Face Hub, quickly and before any download, whether something can be had from it."""

PROBE_SECONDS = 10.0


def ask_hub(name, *, kind="model", revision=None):
    """Return the commit and the files that the Hub has under a name, by one request without retries."""
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    look_up = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        info = look_up(name, revision=revision, timeout=PROBE_SECONDS)
    except hub.HFValidationError as error:
        raise LookupError(f"{name!r} is not a possible Hub name ({error})") from error
    except hub.RevisionNotFoundError as error:
        raise LookupError(f"{name!r} is on the Hub but has no revision {revision!r}") from error
    except hub.GatedRepoError as error:
        told = f"{name!r} is gated: accept its terms at https://huggingface.co/{name}"
        raise PermissionError(f"{told} and run `hf auth login`") from error
    except hub.RepositoryNotFoundError as error:
        raise LookupError(f"the Hub has no {kind} {name!r}, or it needs `hf auth login`") from error
    except (hub.HTTPError, OSError) as error:  # OSError covers refused sockets and HF_HUB_OFFLINE
        reason = f"{type(error).__name__}: {error}"
        raise ConnectionError(f"the Hugging Face Hub could not be reached ({reason})") from error
    return info.sha, [entry.rfilename for entry in info.siblings or ()]
