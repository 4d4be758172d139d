"""Which implementation computes a model: our own forward pass, or transformers' modules."""

from __future__ import annotations

from pathlib import Path

from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.errors import ModelError, UnsupportedModelError
from pdv_mp.model.transformers_config import TransformersConfig


def read_model(
    folder: str | Path, implementation: str = "auto"
) -> ModelConfig | TransformersConfig:
    """The shape of the model in a folder; its type says what computes the model.

    `implementation`, as of ``--model-impl``: ``pdv`` is our own forward pass, ``transformers`` that
    of transformers' modules, ``auto`` the first where it knows the architecture and its settings.
    Raises ModelError for a model that this implementation cannot serve.
    """
    if implementation == "transformers":
        return TransformersConfig.from_folder(folder)
    try:
        return ModelConfig.from_folder(folder)
    except UnsupportedModelError as error:
        if implementation == "pdv":
            raise ModelError(f"{error} Perhaps --model-impl transformers can serve it.") from None
    return TransformersConfig.from_folder(folder)
