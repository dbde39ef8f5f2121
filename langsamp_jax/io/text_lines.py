"""Text that users write: what a line is, and which lines hold text. One rule for every file.

A file is UTF-8, with or without a byte order mark. LF or CR LF ends a line; CR alone does so only
in a file whose first MiB has no LF. Nothing else does: U+2028 or a form feed stays in its line.
"""

import re
from pathlib import Path

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import require_fetched, require_regular

HEAD_BYTES = 1 << 20  # of a file, which tell how its lines end

# What Unicode lets a font leave out: zero-width and soft-hyphen characters, bidirectional marks,
# variation selectors, fillers, tags; and the blank of Braille.
_INVISIBLE = (
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_PRIVATE_USE = "\ue000-\uf8ff\U000f0000-\U0010ffff"  # letters of private scripts, else of no font
_BLANK = "\\s\0-\x1f\x7f-\x9f"  # white space and controls
INVISIBLE = re.compile(f"[{_INVISIBLE}{_PRIVATE_USE}]+")
VISIBLE = re.compile(f"[^{_BLANK}{_INVISIBLE}{_PRIVATE_USE}]")
VISIBLE_OR_PRIVATE = re.compile(f"[^{_BLANK}{_INVISIBLE}]")


def ends_with_cr(head: bytes) -> bool:
    """Returns whether CR alone ends the lines of a file that begins with ``head``."""
    return b"\n" not in head and b"\r" in head


def read_text(file: Path) -> str:
    """Reads a file of a size that memory holds, its line ends made LF, without its mark.

    Raises:
      UserError: it is no regular file, was not fetched, or is not UTF-8; the line is named.
    """
    require_regular(file)
    return decode_text(file.read_bytes(), file)


def read_lines(file: Path) -> list[str]:
    """Reads every line of a file without its end; raises as ``read_text``."""
    return text_lines(read_text(file))


def text_lines(text: str) -> list[str]:
    """Returns the lines of a text whose line ends are LF; the last one may have none."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def decode_text(data: bytes, source: object) -> str:
    """Decodes what ``read_text`` reads; ``source`` is named where it is not UTF-8, or a pointer."""
    require_fetched(data, source)
    if b"\r" in data:
        data = re.sub(b"\r+\n", b"\n", data)
        if ends_with_cr(data[:HEAD_BYTES]):
            data = data.replace(b"\r", b"\n")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        number, byte = data.count(b"\n", 0, start) + 1, error.start - start
        raise UserError(
            f"{source}, line {number}: not UTF-8 ({error.reason} at byte {byte}); convert the file"
        ) from None
