"""From a folder or hub id to weights in memory.

torch is imported inside the functions that need it: the launcher resolves and compares models
before any process starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.config_file import ConfigFile, read_json
from pdv_mp.model.errors import ModelError

if TYPE_CHECKING:
    import torch

    from pdv_mp.model.weights import Weights

_HUB_FILES = ["*.safetensors", "*.json", "tokenizer*"]
_HUB_IGNORED = ["*/*", "consolidated*", "*.bin", "*.pth", "*.py"]


def resolve_model(name: str) -> Path:
    """The folder of a model given as local folder or hub id, with the files needed to serve it.

    A hub id is downloaded (safetensors, JSON and tokenizer files only) or taken from the cache;
    HF_TOKEN and HF_HUB_OFFLINE are honoured by the hub library. Raises ModelError.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        folder = local.resolve()
    elif local.exists():
        raise ModelError(f"{name} is a file; give the folder that holds config.json.")
    elif local.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: no such folder.")
    else:
        folder = _download(name)
    if read_json(folder / "config.json").get("auto_map"):
        raise ModelError(
            f"{folder}: config.json asks for code of the model's own (auto_map), which is never "
            "run; if the model is a standard one, remove auto_map from a copy of its folder."
        )
    weight_files(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder}: tokenizer.json is missing; save the tokenizer in the fast format."
        )
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED)
        )
    except GatedRepoError:
        raise ModelError(
            f"{name}: access to this model must be granted on the hub first; then set HF_TOKEN."
        ) from None
    except (HFValidationError, RepositoryNotFoundError):
        raise ModelError(
            f"{name}: neither a local folder nor a model on the hub (a private one needs HF_TOKEN)."
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{name}: not a local folder, and the hub says: {reason}") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint; ModelError when there are none or one is missing."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{index}: weight_map is missing.")
        files = [folder / str(file) for file in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(f"{folder}: {', '.join(missing)} is missing.")
        return files
    files = [
        file
        for file in sorted(folder.glob("*.safetensors"))
        if not file.name.startswith("consolidated")
    ]
    if files:
        return files
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise ModelError(
            f"{folder}: the weights are pickle files, which can run code when loaded; convert them "
            "to safetensors."
        )
    raise ModelError(f"{folder}: no *.safetensors file found.")


def check_pair(target_folder: str | Path, draft_folder: str | Path) -> None:
    """Raise ModelError unless both models give the same meaning to every token id.

    Vocabularies may be padded to different sizes; ids at or beyond a model's vocab_size do not
    exist for it. Only ids are exchanged and only the target's tokenizer splits text, so merge rules
    are not compared.
    """
    target = _vocabulary(Path(target_folder))
    draft = _vocabulary(Path(draft_folder))
    differing = sorted(
        token for token in target.keys() | draft.keys() if target.get(token) != draft.get(token)
    )
    if differing:
        token = differing[0]
        raise ModelError(
            f"the draft model {draft_folder} has another vocabulary than {target_folder}: "
            f"{len(differing)} token ids differ, the first is {token} ({target.get(token)!r} in "
            f"the target, {draft.get(token)!r} in the draft); choose a draft with the same "
            "tokenizer."
        )


def _vocabulary(folder: Path) -> dict[int, str]:
    """Token by id, for the ids that the model can embed."""
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    size = ConfigFile.of(folder).integer("vocab_size")
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        tokens = {int(index): str(token) for token, index in vocab.items()}
    elif isinstance(vocab, list):
        tokens = {index: str(entry[0]) for index, entry in enumerate(vocab)}
    else:
        raise ModelError(f"{path}: the tokenizer's vocabulary is missing.")
    for added in tokenizer.get("added_tokens") or []:
        tokens[int(added["id"])] = str(added["content"])
    return {index: token for index, token in tokens.items() if index < size}


def load_weights(
    config: ModelConfig,
    folder: str | Path,
    dtype: torch.dtype,
    device: torch.device | str,
    into: torch.Tensor | None = None,
) -> Weights:
    """Load a safetensors checkpoint, fuse and convert it, tensor by tensor, into one flat buffer.

    `into`: a uint8 tensor on `device` to use as the buffer, at least Manifest.build(...).nbytes
    long. Raises ModelError that names tensors which are missing, unexpected or of another shape.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    from pdv_mp.model.fusion import is_derived, placements

    folder = Path(folder)
    weights = _allocate(config, dtype, torch.device(device), into)
    pending = placements(config)
    unexpected = []
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names: list[str] = file.keys()
                for name in names:
                    placement = pending.pop(name, None)
                    if placement is not None:
                        placement.store(weights, name, file.get_tensor(name))
                    elif not is_derived(config, name):
                        unexpected.append(name)
        except ModelError as error:
            raise ModelError(f"{folder}: {error}") from None
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}.") from error
    if pending:
        raise ModelError(f"{folder}: tensors are missing: {some(list(pending))}.")
    if unexpected:
        raise ModelError(f"{folder}: unexpected tensors: {some(unexpected)}.")
    return weights


def random_weights(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int = 0,
    into: torch.Tensor | None = None,
) -> Weights:
    """Weights without a checkpoint, equal for equal seeds on any device. `into`: see load_weights.

    Matrices are normal with variance 1 / columns, norms 1, biases small, so that activations stay
    of order one and the logits of different tokens differ.
    """
    import torch

    weights = _allocate(config, dtype, torch.device(device), into)
    generator = torch.Generator().manual_seed(seed)
    for entry in weights.manifest.entries:
        if entry.name.endswith("norm"):
            weights[entry.name].fill_(1.0)
        else:
            scale = 0.02 if entry.name.endswith("bias") else entry.shape[-1] ** -0.5
            values = torch.randn(entry.shape, generator=generator).mul_(scale)
            weights[entry.name].copy_(values)
    return weights


def _allocate(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, into: torch.Tensor | None
) -> Weights:
    import torch

    from pdv_mp.model.weights import Manifest, Weights

    manifest = Manifest.build(config, dtype)
    if into is None:
        into = torch.empty(manifest.nbytes, dtype=torch.uint8, device=device)
    elif into.device.type != device.type:
        raise ValueError(f"the buffer lies on {into.device}, not on {device}")
    return Weights(manifest, into)


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
