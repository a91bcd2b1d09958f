"""Names of images as tables and file systems write them -> one form that can be compared. Knows no table and no folder."""

import os
import re
import unicodedata

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"}
OTHER_SUFFIXES = {
    ".bmp", ".dib", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".dcm", ".dicom", ".dng", ".cr2", ".cr3",
    ".nef", ".arw", ".raw", ".npy", ".svs", ".ppm", ".pgm", ".tga", ".psd",
}  # fmt: skip
"""Endings of images that are not read."""


def image_id_of(text: str) -> str:
    """Return the image id in what a table says: the last part of a path, without the ending of a file, in Unicode's form C."""
    return without_suffix(path_parts(text)[-1])


def path_parts(text: str) -> list[str]:
    """Return the parts of a path as a table writes it, with slashes of either kind; at least one, which may be empty."""
    parts = [
        part
        for part in unicodedata.normalize("NFC", text.strip()).replace("\\", "/").split("/")
        if part != "."
    ]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return [part.strip() for part in parts] or [""]


def without_suffix(name: str) -> str:
    """Return a name without the ending that a file of an image has; other endings belong to the name."""
    stem, dot, suffix = name.rpartition(".")
    return (
        stem if dot and stem and f".{suffix.lower()}" in IMAGE_SUFFIXES | OTHER_SUFFIXES else name
    )


def shown(name: object) -> str:
    """Return a name that can be written anywhere: bytes that are not UTF-8 are spelled in hexadecimal."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


def loose(image_id: str) -> str:
    """Return a form in which names agree that differ only in case, blanks, separators, leading zeros or a final .0."""
    compact = re.sub(r"[\s_\-.]+", "", re.sub(r"\.0$", "", image_id).casefold())
    return re.sub(r"0+(?=\d)", _unless_inside, compact)


def _unless_inside(match: "re.Match[str]") -> str:
    """Drop zeros that lead a number, and keep those within one."""
    before = match.string[match.start() - 1 : match.start()]
    return match.group() if before.isdigit() else ""


def number_of(image_id: str) -> str | None:
    """Return the number at the end of an id without its leading zeros, or None if there is none."""
    found = re.search(r"(\d+)(?:\.0)?$", image_id)
    return str(int(found.group(1))) if found else None


def how_they_differ(wanted: str, found: str) -> str:
    """Say how two names that `loose` calls equal, or whose numbers are equal, differ."""
    if wanted.casefold() == found.casefold():
        return "in upper and lower case"
    zeros = re.sub(r"\d+", lambda run: str(int(run.group())), found.casefold())
    plain = re.sub(r"\.0$", "", wanted.casefold())
    if re.sub(r"\d+", lambda run: str(int(run.group())), plain) == zeros:
        return "in leading zeros, which spreadsheets take off; format the column as text"
    if plain.isdigit() and number_of(found) == number_of(plain):
        return "in what stands before the number"
    return "in blanks or separators"
