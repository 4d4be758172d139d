"""The small models: which folders, and their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.inflate.errors import InflateError
from bench.inflate.names import tensor_shapes
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.errors import ModelError
from pdv_mp.model.loading import check_pair, resolve_model, some, weight_files

if TYPE_CHECKING:
    import torch

Role = Literal["verifier", "draft"]


@dataclass(frozen=True, slots=True)
class SmallPair:
    """The model to inflate, and the one that it has to agree with. Folders of checkpoints."""

    inflated: Path
    counterpart: Path
    role: Role

    @property
    def verifier(self) -> Path:
        return self.inflated if self.role == "verifier" else self.counterpart

    @property
    def draft(self) -> Path:
        return self.counterpart if self.role == "verifier" else self.inflated


def find_pair(source: str, role: Role, against: str | None) -> SmallPair:
    """The two models of a folder that holds ``verifier`` and ``draft``, or one model and itself.

    ``against`` names another counterpart. Raises InflateError for a folder that is no checkpoint
    and for models that give other meanings to token ids.
    """
    folder = Path(source).expanduser()
    if (folder / "verifier").is_dir() and (folder / "draft").is_dir():
        other = "draft" if role == "verifier" else "verifier"
        inflated, counterpart = str(folder / role), str(folder / other)
    else:
        inflated = counterpart = source
    try:
        pair = SmallPair(resolve_model(inflated), resolve_model(against or counterpart), role)
        check_pair(pair.verifier, pair.draft)
    except ModelError as error:
        raise InflateError(str(error)) from None
    return pair


def read_config(folder: Path) -> ModelConfig:
    """What a checkpoint's config.json says. Raises InflateError for one that is not supported."""
    try:
        return ModelConfig.from_folder(folder)
    except ModelError as error:
        raise InflateError(str(error)) from None


def read_tensors(folder: Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """All tensors of a small checkpoint by name, in the dtype they are stored in.

    Raises InflateError that names tensors which are missing or of another shape.
    """
    from safetensors import SafetensorError, safe_open

    expected = dict(tensor_shapes(config))
    tensors: dict[str, torch.Tensor] = {}
    try:
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                names: list[str] = file.keys()
                for name in names:
                    if name in expected:
                        tensors[name] = file.get_tensor(name)
    except ModelError as error:
        raise InflateError(str(error)) from None
    except (SafetensorError, OSError) as error:
        raise InflateError(f"{folder}: the weights cannot be read: {error}.") from error
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise InflateError(f"{folder}: tensors are missing: {some(missing)}.")
    for name, shape in expected.items():
        found = tensors[name]
        if tuple(found.shape) != shape or not found.is_floating_point():
            raise InflateError(
                f"{folder}: {name} is {found.dtype} {list(found.shape)}, expected floating point "
                f"{list(shape)}."
            )
    return tensors
