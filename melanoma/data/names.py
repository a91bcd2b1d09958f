"""Brings names of images, as tables and file systems write them, into a form that can be compared.

Knows nothing of tables and folders.
"""

import os
import re
import unicodedata

IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".dcm", ".dicom",
}  # fmt: skip
OTHER_SUFFIXES = {
    ".bmp", ".dib", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".npy", ".svs", ".ppm",
    ".pgm", ".tga", ".psd",
}  # fmt: skip
"""Suffixes of image formats that are not read."""


def image_id_of(text: str) -> str:
    """Return the image id in a table's text.

    That is the last part of a path without the suffix of an image, in Unicode's form C.
    """
    return without_suffix(path_parts(text)[-1])


def path_parts(text: str) -> list[str]:
    """Return the parts of a path that a table writes with slashes or backslashes.

    There is at least one part, which may be empty.
    """
    parts = [
        part
        for part in unicodedata.normalize("NFC", text.strip()).replace("\\", "/").split("/")
        if part != "."
    ]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return [part.strip() for part in parts] or [""]


def without_suffix(name: str) -> str:
    """Return a name without the suffix of an image format; other suffixes belong to the name."""
    stem, dot, suffix = name.rpartition(".")
    return (
        stem if dot and stem and f".{suffix.lower()}" in IMAGE_SUFFIXES | OTHER_SUFFIXES else name
    )


def shown(name: object) -> str:
    """Return a name that can be printed anywhere: bytes that are not UTF-8 become hexadecimal."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


def loose(image_id: str) -> str:
    """Return a form that is equal for names that differ only in spelling.

    Differences in case, blanks, separators, leading zeros and a final .0 are removed.
    """
    compact = re.sub(r"[\s_\-.]+", "", re.sub(r"\.0$", "", image_id).casefold())
    return re.sub(r"0+(?=\d)", _unless_inside, compact)


def _unless_inside(match: "re.Match[str]") -> str:
    """Drop zeros that lead a number and keep those inside one."""
    before = match.string[match.start() - 1 : match.start()]
    return match.group() if before.isdigit() else ""


def number_of(image_id: str) -> str | None:
    """Return the number at the end of an id without its leading zeros, or None if there is none."""
    found = re.search(r"(\d+)(?:\.0)?$", image_id)
    return str(int(found.group(1))) if found else None


def how_they_differ(wanted: str, found: str) -> str:
    """Return in words how two names differ that agree by `loose` or by `number_of`."""
    if wanted.casefold() == found.casefold():
        return "in upper and lower case"
    zeros = re.sub(r"\d+", lambda run: str(int(run.group())), found.casefold())
    plain = re.sub(r"\.0$", "", wanted.casefold())
    if re.sub(r"\d+", lambda run: str(int(run.group())), plain) == zeros:
        return "in leading zeros, which spreadsheets remove; format the column as text"
    if plain.isdigit() and number_of(found) == number_of(plain):
        return "in the text before the number"
    return "in blanks or separators"
