"""What MkDocs asks for while it builds the site: pages made of files outside `docs/`, and the options out of the code.

Pages are written so that their links hold in the repository's web view. There they may lead to any file; on the site,
a link to a file that is a page there leads to that page, and one to any other file of the repository becomes its name.
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

from rpo_verl import config as options

ROOT = Path(__file__).resolve().parent.parent

#: Page of the site → file of the repository that it is made of.
FROM_THE_REPOSITORY = {
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
    """One option, as `rpo_verl/config.py` has it."""

    key: str
    type: str
    default: str
    paper: str
    """Its value under `+rpo=paper`."""

    allowed: str
    """What `validate` accepts; empty where the type alone decides."""

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
    """Links as the site needs them.

    Args:
        markdown: the text of a page; what is code in it is left alone.
        source: path of its file in the repository.
        pages: what the site has, relative to `docs/`.
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
    """Every option of every section, in the order of the code."""
    tree = ast.parse(inspect.getsource(options))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    allowed = _allowed_values(tree)
    paper = yaml.safe_load((ROOT / "hydra_configs" / "rpo" / "paper.yaml").read_text())["rpo"]
    return list(_sections(options.RPOConfig, "rpo", classes, allowed, paper))


def _sections(cls: type, prefix: str, classes: dict, allowed: dict, paper: dict) -> Iterator[Section]:
    node = classes[cls.__name__]
    meanings, types = _field_docstrings(node), {n.target.id: n.annotation for n in node.body if _is_field(n)}
    own, nested = [], []
    for field in fields(cls):
        default = field.default if field.default is not MISSING else field.default_factory()
        key = f"{prefix}.{field.name}"
        if is_dataclass(default):
            nested.append(_sections(type(default), key, classes, allowed, paper.get(field.name, {})))
            continue
        own.append(
            Option(
                key=key,
                type=ast.unparse(types[field.name]).replace("None", "null").replace(" | ", " or "),
                default=as_yaml(default),
                paper=as_yaml(paper.get(field.name, default)),
                allowed=allowed.get(key, ""),
                meaning=meanings.get(field.name, ""),
            )
        )
    for sections in nested:
        yield from sections
    yield Section(prefix, inspect.cleandoc(cls.__doc__), tuple(own))


def _is_field(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def _field_docstrings(node: ast.ClassDef) -> dict[str, str]:
    found = {}
    for one, following in zip(node.body, node.body[1:], strict=False):
        if _is_field(one) and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[one.target.id] = inspect.cleandoc(following.value.value)
    return found


def _allowed_values(tree: ast.Module) -> dict[str, str]:
    """Key → what it may be, from the table of checks in `validate`."""
    (validate,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "validate")
    (checks,) = (
        node.value
        for node in validate.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "checks"
    )
    return {f"rpo.{key.value}": _without_values(text) for key, _, _, text in (check.elts for check in checks.elts)}


def _without_values(text: ast.expr) -> str:
    """The text of a check, less the values that it quotes as `key = value`."""
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in parts).replace(" = \0", "")


def as_yaml(value: Any) -> str:
    """A value as one writes it on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def render_options(sections: list[Section]) -> str:
    """Markdown: a heading for every section and every option."""
    lines = []
    for section in sections:
        lines += [f"## {section.name}", "", section.meaning, ""]
        for option in section.options:
            facts = [option.type, f"default `{option.default}`"]
            if option.paper != option.default:
                facts.append(f"`+rpo=paper` sets `{option.paper}`")
            if option.allowed:
                facts.append(f"must be {option.allowed}")
            lines += [f"### `{option.key}`", "", " · ".join(facts), "{: .facts }", "", option.meaning, ""]
    return "\n".join(lines)


def render_paper(sections: list[Section]) -> str:
    """Markdown: the options that `+rpo=paper` sets otherwise."""
    lines = ["| option | `+rpo=enabled` | `+rpo=paper` |", "|---|---|---|"]
    for option in (option for section in sections for option in section.options):
        if option.paper != option.default:
            anchor = option.key.replace(".", "")
            lines.append(f"| [`{option.key}`](#{anchor}) | `{option.default}` | `{option.paper}` |")
    return "\n".join(lines)
