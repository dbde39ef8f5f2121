"""The exception that means "the user can fix this", and what to say where memory runs out."""

import re


class UserError(Exception):
    """A mistake in the input, settled in one line: what is wrong, where, and what to do.

    The command line prints the message alone and exits with 2; everything else that
    escapes is a defect of ours and keeps its traceback.
    """


def out_of_memory(error: Exception) -> str | None:
    """The line for what XLA raises where a device's memory does not do; None for another error."""
    text = str(error)
    if not re.search("RESOURCE_EXHAUSTED|Out of memory", text):
        return None
    amount = re.search(r"[Uu]sed [\d.]+\w* of [\d.]+\w*|allocat\w+ [\d.]+ ?\w+", text)
    return (
        f"the device is out of memory{f' ({amount.group()})' if amount else ''}: raise "
        "train.accumulation_steps, set model.remat=layer or model.dtype=bfloat16, or spread the "
        "parameters over more devices with mesh.fsdp; langsamp plan says beforehand what fits"
    )
