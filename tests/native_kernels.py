"""Models that our compiled kernels compute, from weights as checkpoints have them."""

from __future__ import annotations

import torch

from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.native.library import native_library
from pdv_mp.model.native.native_transformer import NativeTransformer
from pdv_mp.model.native.panels import fill_panels, panel_manifest
from pdv_mp.model.weights import Weights


def native_transformer(
    config: ModelConfig, weights: Weights, max_model_len: int
) -> NativeTransformer:
    """With panels of its own, whose padding begins as NaN."""
    library = native_library()
    manifest = panel_manifest(config, library.lanes)
    panels = Weights(manifest, torch.full((manifest.nbytes,), 255, dtype=torch.uint8))
    fill_panels(config, weights, panels, library.lanes)
    return NativeTransformer(config, panels, max_model_len, library)
