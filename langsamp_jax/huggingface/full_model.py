"""The full form of an export: the encoder, its head and the two tables, for PyTorch.

PyTorch users need code for the tables, so ``MODELING_FILE`` travels in the exported folder.
"""

from importlib import resources
from typing import Any

from langsamp_jax.errors import UserError
from langsamp_jax.huggingface.layout import FULL, MODEL_CLASS
from langsamp_jax.languages.inventory import Inventory

MODELING_FILE = resources.files("langsamp_jax") / "huggingface" / "modeling_langsamp.py"


def full_model_config(
    stock_config: dict[str, Any], inventory: Inventory, placement: str
) -> dict[str, Any]:
    """``config.json`` of the full form.

    Args:
      stock_config: that of the same encoder without tables.
      inventory: the names of the tables' rows; empty for a table that the model does without.
      placement: ``output`` or ``input``.

    Raises:
      UserError: the model has no tables.
    """
    if placement == "none" or not (inventory.languages or inventory.scripts):
        raise UserError("the model has no language or script vectors; leave --full out")
    family = MODEL_CLASS[stock_config["model_type"]]
    module = MODELING_FILE.name.removesuffix(".py")
    classes = {
        "AutoConfig": f"LangSamp{family}Config",
        "AutoModel": f"LangSamp{family}Model",
        "AutoModelForMaskedLM": f"LangSamp{family}ForMaskedLM",
    }
    return {
        **stock_config,
        "architectures": [classes["AutoModelForMaskedLM"]],
        "auto_map": {auto: f"{module}.{name}" for auto, name in classes.items()},
        "model_type": FULL + stock_config["model_type"],
        "languages": list(inventory.languages),
        "scripts": list(inventory.scripts),
        "placement": placement,
    }
