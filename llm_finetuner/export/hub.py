"""Upload a trained model to the Hugging Face hub."""

import os
from pathlib import Path

from llm_finetuner.errors import ModelError

PRIVATE_TO_THE_RUN = [
    "*/*",
    "log.jsonl",
    "bad_rows.jsonl",
]  # sub-folders are checkpoints, baselines and trackers


def upload(
    folder: str | Path,
    repo_name: str,
    *,
    token: str | None = None,
    create_new: bool = False,
    private: bool = False,
) -> str:
    """Upload the folder and return its address. The token (or HF_TOKEN) is used, never written. Raises ModelError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token or os.environ.get("HF_TOKEN"))
    try:
        if create_new:
            api.create_repo(repo_name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_name, folder_path=str(folder), ignore_patterns=PRIVATE_TO_THE_RUN
        )
        return str(commit)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot upload to {repo_name!r}: {first}",
            "check the name, the token, and create_new=True for a new one",
        ) from error
