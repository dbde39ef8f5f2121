"""PyTorch as a contender: the published recipe, stock ``transformers``, and PyTorch tuned.

All are ``transformers``' own XLM-R. What differs is in ``Settings``.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from interleave import host_peak, serve
from workload import CLIP_NORM, LEARNING_RATE, TABLES, WEIGHTS, Workload, load_batches


@dataclasses.dataclass(frozen=True)
class Settings:
    """Defaults are the published recipe's.

    ``gathered``: the language-modelling head only where a token is to be predicted, behind the
    language and script vectors; otherwise the stock model, whose head computes every position.
    ``fused``: AdamW as one kernel. The published run has the Trainer's plain ``adamw_torch``; the
    Trainer's default became ``adamw_torch_fused`` later.
    ``dtype``: of autocast; float16 with loss scaling, as the Trainer has it.
    ``compiled``: by ``torch.compile``; rows have no padding, so it also goes without a mask.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["eager", "sdpa"] = "eager"
    gathered: bool = True
    fused: bool = False
    compiled: bool = False


class LangSamp(torch.nn.Module):
    """XLM-R with language and script vectors on its output, the head on the masked positions."""

    def __init__(self, stock: transformers.XLMRobertaForMaskedLM, tables: dict[str, np.ndarray]):
        super().__init__()
        self.stock = stock
        self.language, self.script = (
            torch.nn.Embedding.from_pretrained(torch.tensor(tables[name]), freeze=False)
            for name in ("language", "script")
        )

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.stock.roberta(batch["inputs"], attention_mask=batch.get("mask"))[0]
        vectors = self.language(batch["language_ids"]) + self.script(batch["script_ids"])
        hidden = hidden + vectors[:, None]
        gathered = torch.take_along_dim(hidden, batch["positions"][..., None], 1)
        logits = self.stock.lm_head(gathered)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


class Stock(torch.nn.Module):
    """``XLMRobertaForMaskedLM`` and its own loss."""

    def __init__(self, stock: transformers.XLMRobertaForMaskedLM):
        super().__init__()
        self.stock = stock

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = torch.full_like(batch["inputs"], -100)
        labels = labels.scatter(1, batch["positions"], batch["targets"])
        return self.stock(batch["inputs"], attention_mask=batch["mask"], labels=labels).loss


class TorchSteps:
    """Forward, backward, clipping and AdamW on the weights and batches in ``folder``."""

    def __init__(self, workload: Workload, folder: Path, settings: Settings):
        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        stock = transformers.XLMRobertaForMaskedLM.from_pretrained(
            folder / WEIGHTS, attn_implementation=settings.attention
        )
        with np.load(folder / TABLES) as tables:
            model = LangSamp(stock, dict(tables)) if settings.gathered else Stock(stock)
        self._model = model.to(self._device).train()
        self._loss = torch.compile(self._model) if settings.compiled else self._model
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=LEARNING_RATE,
            weight_decay=0.0,
            fused=True if settings.fused else None,
        )
        # A scale that random weights bear: a step that overflows is skipped, and would be quicker.
        half = settings.dtype == "float16"
        self._scaler = torch.amp.GradScaler(self._device.type, init_scale=1024.0, enabled=half)
        self._batches = iter(load_batches(folder))
        self.facts = {
            "first_loss": self._first_loss(load_batches(folder)[0]),
            "parameters": sum(p.numel() for p in self._model.parameters()),
        }
        for _ in range(workload.warmup):
            self.step()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def step(self) -> float:
        batch = self._place(next(self._batches))
        with self._autocast():
            loss = self._loss(batch)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        value = loss.item()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return value

    def peak_memory(self) -> int:
        cuda = self._device.type == "cuda"
        return torch.cuda.max_memory_allocated() if cuda else host_peak()

    def _first_loss(self, arrays: dict[str, np.ndarray]) -> float:
        """The loss of the first batch without dropout, for comparison between contenders."""
        self._model.eval()
        with torch.no_grad(), self._autocast():
            loss = self._model(self._place(arrays)).item()
        self._model.train()
        return loss

    def _place(self, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        batch = {
            name: torch.from_numpy(array).to(self._device, torch.int64)
            for name, array in arrays.items()
        }
        if not self._settings.compiled:
            batch["mask"] = torch.ones_like(batch["inputs"])
        return batch

    def _autocast(self) -> contextlib.AbstractContextManager:
        dtype = getattr(torch, self._settings.dtype)
        if dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype)


def build(spec: dict[str, Any]) -> TorchSteps:
    settings = Settings(**spec["settings"])
    return TorchSteps(Workload(**spec["workload"]), Path(spec["folder"]), settings)


if __name__ == "__main__":
    serve(build)
