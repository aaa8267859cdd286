"""The Hugging Face Hub, asked once: what cannot be had is an error of one line, not minutes of attempts."""

from __future__ import annotations

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

from adadiff.utils.errors import InputError, suggestion
from adadiff.utils.files import packaged_models

TIMEOUT = 10  # seconds


def require_on_hub(name: str, file: str) -> None:
    """Raise InputError unless a repository's file is on the Hugging Face Hub or in its cache on this machine.

    Args:
        name: Name of the repository, as `someone/model`.
        file: Name of the file.
    """
    try:
        if not isinstance(try_to_load_from_cache(name, file), str):
            get_hf_file_metadata(hf_hub_url(name, file), timeout=TIMEOUT)
    except Exception as error:  # of the client's HTTP library, which differs between its versions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"there is no folder {name}, and {file} of that name cannot be had from the Hugging Face Hub ({reason}); "
            f"in the package: {suggestion(name, packaged_models())}"
        ) from error
