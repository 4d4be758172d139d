"""The stages by which the shipped model pair is made, each of which goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from bench.models.batches import WindowSampler
from bench.models.checkpoint import load_checkpoint
from bench.models.corpus import (
    Document,
    read_held_out,
    select_documents,
    standard_library,
    training_order,
)
from bench.models.distillation import (
    MixedSampler,
    draft_loss_of_step,
    initialise_embedding,
    write_continuations,
)
from bench.models.export import export_model
from bench.models.llama import TrainingLlama
from bench.models.loop import train_model
from bench.models.shapes import (
    CONTINUATION_PLAN,
    DRAFT_PLAN,
    DRAFT_SHAPE,
    SEED,
    VERIFIER_PLAN,
    VERIFIER_SHAPE,
    ContinuationPlan,
    ModelShape,
    TrainingPlan,
)
from bench.models.tokenizer import encode_stream, save_tokenizer, train_tokenizer
from pdv_mp import assets


@dataclass(frozen=True)
class Recipe:
    """Shapes and plans of a pair; the defaults are those of the shipped one."""

    verifier_shape: ModelShape = VERIFIER_SHAPE
    verifier_plan: TrainingPlan = VERIFIER_PLAN
    continuation_plan: ContinuationPlan = CONTINUATION_PLAN
    draft_shape: ModelShape = DRAFT_SHAPE
    draft_plan: TrainingPlan = DRAFT_PLAN
    seed: int = SEED


class Pipeline:
    """Makes a model pair in ``work``, and exports it to a folder of one's choice.

    ``compute_dtype`` is that of the matrix products while training; ``compiled`` runs the losses
    through ``torch.compile``. ``max_steps`` bounds the steps that each training makes in this run.
    """

    def __init__(
        self,
        work: Path,
        recipe: Recipe,
        compute_dtype: torch.dtype,
        compiled: bool,
        max_steps: int | None = None,
    ) -> None:
        self.work = work
        self.recipe = recipe
        self._dtype = compute_dtype
        self._compiled = compiled
        self._max_steps = max_steps
        work.mkdir(parents=True, exist_ok=True)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's two files lie."""
        return self.work / "tokenizer"

    def corpus(self) -> NDArray[np.uint16]:
        """The training stream of ids; made, with the tokenizer, on the first call."""
        path = self.work / "stream.npy"
        if not path.exists():
            documents = self._select()
            tokenizer = train_tokenizer(
                (document.text for document in documents),
                self.recipe.verifier_shape.vocabulary_size,
            )
            save_tokenizer(tokenizer, self.tokenizer_folder)
            unfinished = path.with_suffix(".unfinished.npy")
            np.save(unfinished, encode_stream(tokenizer, [d.text for d in documents]))
            unfinished.rename(path)
        stream: NDArray[np.uint16] = np.load(path)
        return stream

    def _select(self) -> list[Document]:
        library = standard_library()
        shipped = [Document(name, text) for name, text in assets.heldout_files()]
        selection = select_documents(library, [*shipped, *read_held_out(library)])
        (self.work / "dropped.json").write_text(
            json.dumps(selection.dropped, indent=1), encoding="utf-8"
        )
        return training_order(selection.documents, self.recipe.seed)

    def tokenizer(self) -> Tokenizer:
        """The trained tokenizer; raises ``FileNotFoundError`` before the corpus stage."""
        path = self.tokenizer_folder / "tokenizer.json"
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: run the corpus stage first")
        return Tokenizer.from_file(str(path))

    def train_verifier(self) -> int:
        """Train the verifier on the stream; returns the steps done."""
        stream, plan, seed = self.corpus(), self.recipe.verifier_plan, self.recipe.seed
        torch.manual_seed(seed)
        model = TrainingLlama(self.recipe.verifier_shape, self._dtype)
        loss = torch.compile(model.loss, dynamic=False) if self._compiled else model.loss
        short = WindowSampler(stream, plan.window, plan.tokens_per_batch // plan.window, seed)
        long = WindowSampler(
            stream, plan.long_window, plan.tokens_per_batch // plan.long_window, seed
        )

        def loss_of_step(step: int) -> Tensor:
            sampler = long if step >= plan.long_start else short
            result: Tensor = loss(*sampler.batch(step))
            return result

        return train_model(model, plan, loss_of_step, self._checkpoint("verifier"), self._max_steps)

    def write_continuations(self) -> NDArray[np.uint16]:
        """Let the verifier continue training text, for the draft to learn from."""
        return write_continuations(
            self._load("verifier"),
            self.corpus(),
            self.recipe.continuation_plan,
            self.recipe.draft_plan.window,
            self.work / "continuations",
            self.recipe.seed,
        )

    def train_draft(self) -> int:
        """Distil the draft from the verifier; returns the steps done."""
        plan, seed = self.recipe.draft_plan, self.recipe.seed
        verifier = self._load("verifier")
        sampler = MixedSampler(self.corpus(), self.write_continuations(), plan, seed)
        torch.manual_seed(seed)
        draft = TrainingLlama(self.recipe.draft_shape, self._dtype)
        initialise_embedding(draft, verifier)
        loss_of_step = draft_loss_of_step(draft, verifier, sampler, self._compiled)
        return train_model(draft, plan, loss_of_step, self._checkpoint("draft"), self._max_steps)

    def export(self, output: Path) -> None:
        """Write ``output/verifier`` and ``output/draft``."""
        for name in ("verifier", "draft"):
            export_model(self._load(name), self.tokenizer_folder, output / name)

    def _checkpoint(self, name: str) -> Path:
        return self.work / f"{name}.safetensors"

    def _load(self, name: str) -> TrainingLlama:
        path = self._checkpoint(name)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: train the {name} first")
        shape = self.recipe.verifier_shape if name == "verifier" else self.recipe.draft_shape
        model = TrainingLlama(shape, self._dtype)
        load_checkpoint(path, model, None)
        return model.requires_grad_(False).eval()
