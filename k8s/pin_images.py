"""Writes images, each with its digest, into the values of an overlay.

    python3 k8s/pin_images.py k8s/overlays/cpu/values/kustomization.yaml IMAGE...

IMAGE is such as registry.example.org/melanoma-serve:2.60.0-cpu-1.0@sha256:... Its last part names
the entry that is replaced. Lines of comments stay. Needs nothing but Python.
"""

import os
import re
import sys
from pathlib import Path

IMAGE = re.compile(
    r"(?P<path>[\w.:/-]+/(?P<name>[\w-]+)):(?P<tag>[\w.-]+)@(?P<digest>sha256:[0-9a-f]{64})"
)


def pin(text: str, image: str) -> str:
    """Return the text of a kustomization with one image written into it.

    Raises:
        ValueError: if the image has no tag or no digest, or if there is no entry of its name.
    """
    found = IMAGE.fullmatch(image)
    if found is None or "://" in image:
        raise ValueError(f"An image must be REGISTRY/NAME:TAG@sha256:DIGEST; it is {image}.")
    name = found["name"]
    entry = re.compile(
        rf"(?m)^(?P<indent> *)- name: {name}(?![\w-]).*\n(?P<rest>(?:(?P=indent)  .*\n)*)"
    )

    def written(old: re.Match[str]) -> str:
        comments = [line for line in old["rest"].splitlines() if line.lstrip().startswith("#")]
        values = (
            f"newName: {found['path']}",
            f'newTag: "{found["tag"]}"',
            f"digest: {found['digest']}",
        )
        lines = (f"{old['indent']}- name: {name}", *comments)
        return "\n".join((*lines, *(f"{old['indent']}  {value}" for value in values), ""))

    changed, num = entry.subn(written, text)
    if num != 1:
        raise ValueError(
            f"images must have one entry with the name {name}; it has {num}. Correct it, or give"
            " the image another name."
        )
    return changed


def main(values: Path, images: list[str]) -> None:
    """Write all images, or none of them if one is wrong."""
    text = values.read_text()
    for image in images:
        text = pin(text, image)
    beside = values.with_name(f"{values.name}.new")
    beside.write_text(text)
    os.replace(beside, values)
    print(f"wrote {len(images)} of the images into {values}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
