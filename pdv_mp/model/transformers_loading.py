"""Loading a model as transformers' own modules: safetensors only, and no code from its folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from pdv_mp.model.config_file import ConfigFile
from pdv_mp.model.errors import ModelError
from pdv_mp.model.loading import some
from pdv_mp.model.transformers_check import FOREIGN_ERRORS, adopt, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from pdv_mp.model.transformers_config import TransformersConfig
    from pdv_mp.model.transformers_model import TransformersModel

logger = logging.getLogger(__name__)


def load_transformers_model(
    config: TransformersConfig,
    folder: str | Path,
    dtype: torch.dtype,
    device: torch.device | str,
    max_model_len: int,
    *,
    dummy: bool = False,
) -> TransformersModel:
    """The model in a folder, after the start-up check of transformers_check.py.

    `dummy` fills the weights with seeded noise instead of reading them. Raises ModelError for a
    folder that transformers cannot load without running code from it, tensors that are missing,
    and a model that cannot be served.
    """
    folder = Path(folder)
    with _quiet():
        settings = _settings(config, folder)
        try:
            model = _dummy(settings, dtype) if dummy else _load(settings, folder, dtype)
            model = model.requires_grad_(False).eval().to(device)
        except ModelError:
            raise
        except (*FOREIGN_ERRORS, SafetensorError) as error:
            raise ModelError(
                f"{folder}: transformers cannot load this model: {first_line(error)}"
            ) from error
        try:
            return adopt(config, model, max_model_len)
        except ModelError as error:
            raise ModelError(f"{folder}: {error}") from error


def _settings(config: TransformersConfig, folder: Path) -> PretrainedConfig:
    """transformers' configuration of a model whose class it has itself."""
    values = ConfigFile.of(folder).values
    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"{folder}: this model needs code that its folder brings along (auto_map), and such "
            "code is never run."
            if values.get("auto_map")
            else f"{folder}: transformers {transformers.__version__} does not know the model type "
            f"{model_type!r}."
        )
    try:
        settings = CONFIG_MAPPING[model_type].from_pretrained(folder, local_files_only=True)
    except FOREIGN_ERRORS as error:
        raise ModelError(
            f"{folder}: transformers cannot read config.json: {first_line(error)}"
        ) from error
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(settings), ())
    names = [part.__name__ for part in (known if isinstance(known, tuple) else (known,))]
    if config.architecture not in names:
        raise ModelError(
            f"{folder}: {config.architecture} is not supported: it is not one of transformers' "
            f"causal language models; of the type {model_type} that is "
            f"{names[0] if names else 'none'}."
        )
    return settings


def _load(settings: PretrainedConfig, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
        folder,
        config=settings,
        dtype=dtype,
        attn_implementation="eager",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, info = loaded
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        raise ModelError(f"{folder}: tensors are missing: {some(missing)}.")
    unexpected = sorted(map(str, info["unexpected_keys"]))
    if unexpected:
        logger.warning("%s: tensors that the model does not use: %s", folder, some(unexpected))
    return model


def _dummy(settings: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Weights without a checkpoint, by the same rule as loading.random_weights."""
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            settings, dtype=dtype, attn_implementation="eager", trust_remote_code=False
        )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                scale = parameter.shape[-1] ** -0.5
            elif name.endswith("bias"):
                scale = 0.02
            else:
                parameter.fill_(1.0)
                continue
            parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(scale))
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and advice; its errors are still shown."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
