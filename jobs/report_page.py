"""The report's page: sections of plain blocks, and the one self-contained HTML file they become.

Everything that is printed goes through `clean` and is escaped by jinja2; pictures are data URIs. The page's policy allows
its own style and script by their hash and nothing else, so no text of a run can load or run anything.
"""

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from pipeline.provenance import project_root, without_secrets

JPEG_QUALITY = 88


@dataclass(frozen=True)
class Note:
    """A paragraph. `missing`: says what is not here, and why."""

    text: str
    missing: bool = False
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of a row names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, in CSS pixels, with what it shows in words."""

    source: Markup
    width: int
    height: int
    alt: str
    caption: str = ""
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Gallery:
    """Pictures that stand side by side where there is room; `wide` ones need more of it."""

    pictures: Sequence[Picture]
    wide: bool = False
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Slider:
    """Pictures of which one is shown at a time; without JavaScript all are. Captions are the positions' names."""

    label: str
    frames: Sequence[Picture]
    kind: ClassVar[str] = "slider"


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Folded:
    """Blocks behind a line that opens them."""

    summary: str
    blocks: Sequence[Any]
    kind: ClassVar[str] = "folded"


Block = Note | Table | Picture | Gallery | Slider | Heading | Folded


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading; `name` is its anchor."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def photographs(path: Path, alt: str, caption: str = "", shown: float = 1.0) -> Picture:
    """The PNG at `path` as JPEG without color subsampling: a third of the bytes, no difference to the eye.

    `shown`: CSS pixels per pixel.
    """
    with Image.open(path) as picture:
        target = io.BytesIO()
        picture.convert("RGB").save(target, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
        width, height = (round(side * shown) for side in picture.size)
    return Picture(_data_uri("jpeg", target.getvalue()), width, height, alt, caption)


def plot(path: Path, alt: str, caption: str = "") -> Picture:
    """The PNG at `path` as it is."""
    with Image.open(path) as picture:
        width, height = picture.size
    return Picture(_data_uri("png", path.read_bytes()), width, height, alt, caption)


def _data_uri(kind: str, content: bytes) -> Markup:
    # base64 has no character that HTML knows; Markup keeps `clean` from looking for paths in it
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")


def clean(text: str, folders: Sequence[Path] = ()) -> str:
    """`text` without passwords in URLs and without this machine's paths: what lies in `folders` or in the project is named
    from there, of any other absolute path only the last part is left.
    """
    text = without_secrets(text)
    for folder in sorted({p.absolute() for p in (*folders, project_root())}, key=lambda p: -len(str(p))):
        if len(folder.parts) > 1:
            text = text.replace(f"{folder}/", "").replace(str(folder), folder.name)
    return re.sub(r"(?<![\w.:/\])>])(?:file://)?/(?:[^\s/'\"<>,;:|]+/)+", "", text)


def render(title: str, sections: Sequence[Section], warning: str, folders: Sequence[Path]) -> str:
    """The whole page. `folders`: those whose paths are cut from every text."""

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else clean(str(value), folders)

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=finalize
    )
    parts = {name: (files("jobs") / f"report.{name}").read_text() for name in ("css", "js", "html")}
    return environment.from_string(parts["html"]).render(
        title=title,
        sections=sections,
        warning=warning,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup(parts["css"]),
        script=Markup(parts["js"]),
        policy=Markup(
            "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src '{_hash(parts['css'])}'; script-src '{_hash(parts['js'])}'"
        ),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
