"""MkDocs hooks: pages made of files outside `docs/`, and the options page from the options' dataclasses.

Pages are written so that their links hold in the repository's web view. There they may lead to any file. On the site a
link to a file that is a page leads to that page; a link to any other file becomes its name.
"""

import ast
import inspect
import posixpath
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File

from rpo_verl.lean.options import LeanConfig
from rpo_verl.r2po.options import R2POConfig
from rpo_verl.rpo.options import RPOConfig

ROOT = Path(__file__).resolve().parent.parent

#: Page of the site → file of the repository that it is made of.
FROM_THE_REPOSITORY = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "recipes-readme.md": "recipes/README.md",
    "recipes-open-rs.md": "recipes/open_rs/README.md",
    "recipes-qwen2.5.md": "recipes/qwen2_5/README.md",
    "data-readme.md": "examples/data_preprocess/README.md",
    "tiny-reasoner.md": "examples/tiny_reasoner/README.md",
}

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\[]*)\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_OPTIONS, _PAPER = "<!-- every option -->", "<!-- where the paper's settings differ -->"


@dataclass(frozen=True)
class Option:
    """One option; values as one writes them on the command line."""

    key: str
    type: str
    default: str
    paper: str
    """Its value in the group `paper` of its algorithm."""

    allowed: str
    """Its range; empty where the type alone decides."""

    meaning: str


@dataclass(frozen=True)
class Section:
    """The options of one class."""

    name: str
    meaning: str
    options: tuple[Option, ...]


def on_files(files: Any, config: Any) -> Any:
    """Add the pages whose text stands outside `docs/`."""
    for page, source in FROM_THE_REPOSITORY.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **kwargs: Any) -> str:
    """Fill in the options, and make links into the repository links of the site."""
    uri = page.file.src_uri
    source = FROM_THE_REPOSITORY.get(uri, f"docs/{uri}")
    if uri == "options.md":
        sections = read_sections()
        markdown = markdown.replace(_OPTIONS, render_options(sections)).replace(_PAPER, render_paper(sections))
    return rewrite_links(markdown, source, {file.src_uri for file in files if file.inclusion.is_included()})


def rewrite_links(markdown: str, source: str, pages: set[str]) -> str:
    """Links as the site needs them; code is left alone.

    Args:
        markdown: the text of a page.
        source: path of its file in the repository.
        pages: pages of the site, relative to `docs/`.
    """
    made_of = {path: page for page, path in FROM_THE_REPOSITORY.items()}

    def rewrite(match: re.Match) -> str:
        text, (path, hash_, anchor) = match["text"], match["target"].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = made_of.get(path, path.removeprefix("docs/"))
        if page in pages and (path in made_of or path.startswith("docs/")):
            return f"[{text}]({page}{hash_}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # for MkDocs to complain about
        return f"`{path}`" if text.strip("`") in (path, posixpath.basename(path)) else f"{text} (`{path}`)"

    parts = _CODE.split(markdown)
    return "".join(part if i % 2 else _LINK.sub(rewrite, part) for i, part in enumerate(parts))


def read_sections() -> list[Section]:
    """Every option of `rpo`, `r2po` and `lean`, in the order of the code."""
    roots = (("rpo", RPOConfig), ("r2po", R2POConfig), ("lean", LeanConfig))
    return [section for name, cls in roots for section in _sections(cls, name, _paper(name))]


def _paper(name: str) -> dict:
    """The options that an algorithm's group `paper` sets, if it has one."""
    path = ROOT / "hydra_configs" / name / "paper.yaml"
    return yaml.safe_load(path.read_text())[name] if path.exists() else {}


def _sections(cls: type, prefix: str, paper: dict) -> Iterator[Section]:
    meanings, own = _docstrings(cls), []
    for field in fields(cls):
        key = f"{prefix}.{field.name}"
        if is_dataclass(field.type):
            yield from _sections(field.type, key, paper.get(field.name, {}))
            continue
        default = field.default if field.default is not MISSING else field.default_factory()
        kind = (
            inspect.formatannotation(field.type)
            .replace("None", "null")
            .replace("bool | int", "bool")
            .replace(" | ", " or ")
        )
        allowed = field.metadata["range"].text if "range" in field.metadata else ""
        chosen = as_yaml(paper.get(field.name, default))
        own.append(Option(key, kind, as_yaml(default), chosen, allowed, meanings.get(field.name, "")))
    yield Section(prefix, inspect.cleandoc(cls.__doc__), tuple(own))


def _docstrings(cls: type) -> dict[str, str]:
    """Field → the string below it."""
    (node,) = ast.parse(inspect.getsource(cls)).body
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
    }


def as_yaml(value: Any) -> str:
    """A value as one writes it on the command line."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else f"{value}"
    # YAML takes 1e-06 for a word.
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text


def _algorithm(option: Option) -> str:
    return option.key.partition(".")[0]


def render_options(sections: list[Section]) -> str:
    """Markdown: a heading for every section and every option."""
    lines = []
    for section in sections:
        lines += [f"## {section.name}", "", section.meaning, ""]
        for option in section.options:
            facts = [option.type, f"default `{option.default}`"]
            if option.paper != option.default:
                facts.append(f"`+{_algorithm(option)}=paper` sets `{option.paper}`")
            if option.allowed:
                facts.append(f"must be {option.allowed}")
            lines += [f"### `{option.key}`", "", " · ".join(facts), "{: .facts }", "", option.meaning, ""]
    return "\n".join(lines)


def render_paper(sections: list[Section]) -> str:
    """Markdown: the options that the groups `paper` set otherwise."""
    lines = ["| option | default | paper |", "|---|---|---|"]
    for option in (option for section in sections for option in section.options):
        if option.paper != option.default:
            anchor = option.key.replace(".", "")
            lines.append(f"| [`{option.key}`](#{anchor}) | `{option.default}` | `{option.paper}` |")
    return "\n".join(lines)
