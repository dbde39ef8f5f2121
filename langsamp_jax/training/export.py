"""A run as a Hugging Face folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.huggingface.export import export, require_form
from langsamp_jax.huggingface.model_card import TrainingFacts
from langsamp_jax.io.files import require_absent
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.edits import Edit, apply_edits
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.training.checkpoint import model_of, restore_params
from langsamp_jax.training.config import TrainConfig
from langsamp_jax.training.run import Run


def export_run(
    run: Run,
    output: Path,
    step: int | None = None,
    fold: str | None = None,
    full: bool = False,
    edits: Sequence[Edit] = (),
    means: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Writes the parameters saved at ``step`` (default: the best) to the new folder ``output``.

    Args:
      fold: a language-script to fold in; or
      full: the full model. Neither: the universal encoder.
      edits, means: what is changed before, see ``apply_edits``.

    Returns:
      the step.

    Raises:
      UserError: the run has no such checkpoint, does not know the language-script, or has no such
        form, or lacks what an edit is about; ``output`` exists.
    """
    require_absent(output)
    config = run.config(ModelConfig)
    require_form(run.path, config, run.inventory, fold, full)
    step, params = restore_params(run, step)
    model, params = apply_edits(edits, model_of(run), params, means)
    facts = TrainingFacts(
        step,
        run.settings["init_from"],
        run.config(TrainConfig).global_batch_size,
        run.sequence_length,
        run.config(MixtureConfig),
        run.config(ObjectiveConfig).mask_rate,
        run.tokens,
        run.store,
        tuple(map(str, edits)),
    )
    export(model.config, params, run.tokenizer, run.inventory, facts, output, fold, full)
    return step
