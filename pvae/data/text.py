"""The text of a file, however it is encoded, as lines."""

import codecs

__all__ = ["lines_of"]

# The marks of UTF-32 come first, because that of little-endian UTF-16 is how one of them begins.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def lines_of(content: bytes, where: str) -> list[str]:
    """The lines of a text in UTF-8, in an encoding that its byte-order mark names, or else in Latin-1.

    Latin-1, because numbers are the same in every 8-bit encoding, and the names of columns are not kept.
    Raises ValueError for a binary file, UTF-16 without a mark, and a text that is not what its mark says.
    """
    encodings = [encoding for mark, encoding in _MARKS if content.startswith(mark)][:1] or ["utf-8", "latin-1"]
    if len(encodings) > 1 and b"\0" in content:
        raise ValueError(
            f"{where} must hold text, got a zero byte: a binary file, or UTF-16 without a byte-order mark; save it as "
            "UTF-8"
        )
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        # Not splitlines, which also breaks lines at characters that Latin-1 has and no table means so.
        return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    raise ValueError(f"{where} must hold text in {encodings[0]}, as its first bytes say, got others; save it as UTF-8")
