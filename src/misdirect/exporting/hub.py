"""An exported folder onto the hub, private unless said otherwise."""

from __future__ import annotations

import re
from pathlib import Path

from misdirect.progress import working
from misdirect.text import first_line

NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def check(name: str) -> None:
    """Raises ValueError for what is not a name on the hub, and where nobody is logged in: both before anything is written."""
    from huggingface_hub import get_token

    if not NAME.fullmatch(name):
        raise ValueError(f"--push {name!r} is not a name on the hub; expected OWNER/NAME")
    if not get_token():
        raise ValueError("--push needs a login on the hub; expected `hf auth login`, or a token in HF_TOKEN")


def push(folder: Path, name: str, public: bool) -> str:
    """Makes the repository if need be and uploads the folder; returns where it is. Raises ValueError where the hub says no."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        with working(f"Uploading to {name}"):
            url = api.create_repo(name, private=not public, exist_ok=True)
            if not public and not api.model_info(name).private:
                raise ValueError("it is there already and public; expected --public, or another name")
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="Unlearned with misdirect")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(f"{folder} is complete, but {name} did not take it: {first_line(error)}") from None
    return f"{url} ({'public' if public else 'private'})"
