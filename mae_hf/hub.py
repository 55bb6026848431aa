"""Upload of models to the Hub."""

from pathlib import Path

import huggingface_hub

from .checkpoint import first_line


def push(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a folder with a model to a repository of the Hub, created if it does not exist.

    Args:
        folder: Folder with weights, config and card. Weights of an earlier upload are deleted from the repository.
        repo_id: Repository, "user/name".
        private: Create the repository as a private one.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the upload fails, or `private` is set and the repository is public.
    """
    client = huggingface_hub.HfApi()
    try:
        client.create_repo(repo_id, private=private, exist_ok=True)
        if private and not client.repo_info(repo_id).private:
            raise ValueError("the repository exists already and is public")
        # weights of an earlier upload could be loaded instead of these
        former = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
        message = "Add converted weights"
        return str(
            client.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=former)
        )
    except Exception as error:  # the client raises errors of several libraries
        raise ValueError(f"{folder} was not uploaded to {repo_id}: {first_line(error)}") from error
