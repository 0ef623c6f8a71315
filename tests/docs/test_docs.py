"""The documentation: it builds without a network, its links hold on the site and in the repository, its options are the
code's, the messages it quotes exist, and its commands are run by a test.
"""

import ast
import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from rpo_verl import discovery
from rpo_verl.config import Range
from rpo_verl.lean.options import LeanConfig
from rpo_verl.r2po.options import R2POConfig
from rpo_verl.rpo.options import RPOConfig

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)

#: What people read in the repository's web view.
TEXTS = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    + [path for folder in ("recipes", "examples", "benchmarks") for path in ROOT.glob(f"{folder}/**/README.md")]
    + list(ROOT.glob("docs/*.md"))
)
#: Whose commands are accounted for.
GUIDES = ("README.md", "CONTRIBUTING.md", "docs/quickstart-cpu.md", "docs/quickstart-gpu.md",
          "docs/options.md", "docs/cache.md", "docs/upgrading-verl.md")  # fmt: skip

#: Run here, as they stand, in the order of the pages, with exit status 0.
RUN_HERE = (
    r"source \.venv/bin/activate",
    r"python examples/tiny_reasoner/prepare_data\.py [^…]+",
    r"python -m verl\.trainer\.main_ppo \+rpo=enabled --cfg job -p rpo",
    r"VERL_PLATFORM=cpu rpo-verl doctor [^…]+",
    r"rpo-verl( \w+)? --help",
)
#: Command → the file, or folder of tests, that really runs it or its equal, and what has to stand there.
RUN_ELSEWHERE = {
    r"make setup": ("Makefile", "test: setup"),
    r"make test": (".ci/run", "\nmake test\n"),
    r"(\.venv/bin/)?python -m pytest( tests/(rpo|lean|hooks|upstream))+": ("Makefile", "-m pytest --ignore tests/slow"),
    r"make docs": ("tests/docs/test_docs.py", '"-m", "mkdocs", "build"'),
    r"pip install --no-deps rpo-verl": ("tests/conftest.py", '"install", "--no-deps"'),
    r"pip install --no-deps (-e )?\.": ("Makefile", "--no-deps --no-build-isolation -e ."),
    r"python -m verl\.trainer\.main_ppo \+rpo=\w+( [\w.]+=\S+)* …": ("tests/real/test_rpo_run.py", "run_recipe("),
    r"python -m verl\.trainer\.main_ppo \+lean=enabled …": ("tests/real", "+lean=enabled"),
    r"VERL_PLATFORM=cpu python -m verl\.trainer\.main_ppo \+platform=cpu .*": ("tests/conftest.py", "def run_main_ppo"),
    r"([A-Z_]+=\S+ )*bash recipes/tiny_reasoner/\S+\.sh.*": ("tests/conftest.py", '"run_tiny_reasoner_cpu.sh"'),
    r"([A-Z_]+=\S+ )*bash recipes/(open_rs|qwen2_5)/\S+\.sh.*": ("tests/recipes/test_compose.py", "SCRIPTS"),
    r"(for set in [\w ]+; do )?python examples/data_preprocess/\S+\.py.*": ("tests/data", "data_preprocess"),
    r"bash recipes/gpu_check\.sh": ("tests/recipes/test_run_gpu_check.py", '"gpu_check.sh"'),
    r"make contract VERL=\S+": ("tests/real/test_contract.py", "def test_verl_has_every_name_rpo_uses"),
    r"make test-slow": ("Makefile", "-m pytest tests/slow"),
    r"rpo-verl cache build .*": ("tests/real/test_world_size_two.py", '"build"'),
    r"rpo-verl (?!cache build)(cache |rollouts )?(?P<name>[a-z-]+)\b.*": ("tests/cli", r'"\g<name>"'),
}

#: Command → why no test runs it, the file that has to know what it names, and the names.
NOT_RUN = {
    r"make (?:demo|demo-dapo)(?: ARGS=\"(.*)\")?": (
        "half an hour; runs are in the log",
        "benchmarks/demo.py",
    ),
    r'pip install (?:torch==2\.11\.0 .* --no-build-isolation )?"rpo-verl\[(\w+)\]"': (
        "there is no release",
        "setup.py",
    ),
}

#: Nothing but loopback may be connected to.
NO_NETWORK = """
import socket

def refuse(*args, **kwargs):
    raise OSError("the documentation asked for the network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
"""


def build(source: Path, site: Path, scratch: Path) -> subprocess.CompletedProcess:
    scratch.mkdir()
    (scratch / "sitecustomize.py").write_text(NO_NETWORK)
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(source / "mkdocs.yml"), "--strict"]
    # Material prints an advertisement unless told not to.
    environment = os.environ | {"PYTHONPATH": str(scratch), "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    return subprocess.run(
        [*command, "--site-dir", str(site)], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    done = build(ROOT, folder / "site", folder / "path")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    # MkDocs tells of some doubtful links at the level of information.
    lines = [line.partition(" - ")[2].strip() for line in output.splitlines() if line.strip()]
    assert len(lines) == 3, output
    assert [line.split()[0] for line in lines] == ["Cleaning", "Building", "Documentation"], output
    return folder / "site"


def test_the_build_ends_at_broken_links(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("docs", "mkdocs.yml") and not path.name.startswith("."):
            (source / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", source / "docs")
    shutil.copy(ROOT / "mkdocs.yml", source)
    broken = ("no-such-page.md", "method.md#no-such-heading", "../no/such/file", "#no-such-heading")
    with (source / "docs" / "recipes.md").open("a") as page:
        page.writelines(f"\n[broken]({link})\n" for link in broken)
    done = build(source, tmp_path / "site", tmp_path / "path")
    assert done.returncode != 0
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("WARNING")]
    assert len(warnings) == len(broken), warnings
    assert all("recipes.md" in line for line in warnings), warnings


class Page(HTMLParser):
    """What a built page has: text, by heading, and what a browser loads or leads to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text: dict[str, str] = {}
        self._heading = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "id" in found:
            self.ids.add(found["id"])
        if tag in ("h1", "h2", "h3") and found.get("id"):
            self._heading = found["id"]
        if tag == "link" and found.get("rel") not in ("prev", "next", "canonical"):
            self.loaded.append(found["href"])
        elif tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag != "a":
            self.loaded += [found[name] for name in ("src", "srcset", "data", "poster") if found.get(name)]
        self.loaded += re.findall(r"url\(([^)]*)\)", found.get("style") or "")

    def handle_data(self, data):
        self.text[self._heading] = self.text.get(self._heading, "") + data


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for path in pages:
        for target in Page(path).loaded:
            assert not re.match(r"['\"]?(https?:)?//", target), f"{path.name} loads {target}"
    for path in site.rglob("*.css"):
        outside = re.findall(r"(?:url\(|@import\s*)['\"]?(?:https?:)?//[^)'\"]*", path.read_text())
        assert not outside, f"{path} loads {outside}"


def test_links_of_the_built_pages_lead_somewhere(site):
    pages = {path.name: Page(path) for path in site.glob("*.html")}
    for name, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            # The page that the server shows for unknown addresses links from the root.
            target = path.lstrip("/") or name
            if target == ".":
                target = "index.html"
            assert (site / target).is_file(), f"{name} links to {link}"
            if anchor and target in pages:
                assert anchor in pages[target].ids, f"{name} links to {link}"


def test_markdown_is_rendered(site):
    for path in site.glob("*.html"):
        for heading, text in Page(path).text.items():
            assert "```" not in text, f"{path.name}#{heading}"
            assert not re.search(r"\]\([\w./#-]+\)", text), f"{path.name}#{heading}"


@pytest.fixture(scope="module")
def server(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_site_in_a_browser(site, server):
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which .ci/run installs")
    from playwright.sync_api import TimeoutError, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page()
        view.set_default_timeout(120_000)
        problems = []
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        own = (server, "data:", "blob:")
        view.on("request", lambda request: None if request.url.startswith(own) else problems.append(request.url))
        for path in sorted(site.glob("*.html")):
            view.goto(server + path.name, wait_until="load")
            for width in (1280, 390):
                view.set_viewport_size({"width": width, "height": 900})
                try:
                    # The theme follows the window in its own time.
                    view.wait_for_function(f"document.documentElement.scrollWidth <= {width}", timeout=10_000)
                except TimeoutError:
                    problems.append(f"{path.name} is wider than a window of {width} pixels")
        view.set_viewport_size({"width": 1280, "height": 900})
        view.goto(server + "index.html")
        view.click(".md-search__input")
        view.keyboard.type("filter_at_most")
        view.wait_for_selector(".md-search-result__item", state="attached")
        browser.close()
    assert not problems, "\n".join(problems)


def leaves(cls: type, prefix: str) -> Iterator[tuple[str, object, Range | None]]:
    """Key, default and range of every option."""
    for field in fields(cls):
        if is_dataclass(field.type):
            yield from leaves(field.type, f"{prefix}.{field.name}")
        else:
            yield f"{prefix}.{field.name}", field.default, field.metadata.get("range")


OPTIONS = [*leaves(RPOConfig, "rpo"), *leaves(R2POConfig, "r2po"), *leaves(LeanConfig, "lean")]


@pytest.fixture(scope="module")
def paper():
    discovery.add_groups()
    with initialize_config_module("rpo_verl.hydra_configs", version_base=None):
        return OmegaConf.merge(*({name: compose(f"{name}/paper")[name]} for name in ("rpo", "r2po")))


@pytest.mark.parametrize(("key", "default", "allowed"), OPTIONS, ids=[key for key, *_ in OPTIONS])
def test_every_option_is_there_with_its_default_range_and_the_papers_value(site, paper, key, default, allowed):
    text = " ".join(Page(site / "options.html").text[key.replace(".", "")].split())
    (written,) = re.findall(r"default (\S+)", text.partition("must be")[0])
    assert yaml.safe_load(written) == default
    assert ("must be" in text) == (allowed is not None)
    assert allowed is None or f"must be {allowed.text}" in text
    algorithm = key.partition(".")[0]
    sets = re.findall(rf"\+{algorithm}=paper sets (\S+)", text)
    expected = OmegaConf.select(paper, key, default=default)
    assert [yaml.safe_load(value) for value in sets] == ([] if expected == default else [expected])
    assert len(text.split("·")[-1]) > 40, f"{key} has no meaning: {text}"


def test_the_papers_settings_are_listed(site, paper):
    listed = re.findall(
        r"(?:rpo|r2po|lean)(?:\.[a-z_0-9]+)+", Page(site / "options.html").text["where-the-papers-settings-differ"]
    )
    assert listed == [key for key, default, _ in OPTIONS if OmegaConf.select(paper, key, default=default) != default]


# Links as a repository's web view resolves them.


def without_code(text: str) -> str:
    text = FENCE.sub("", text)
    return re.sub(r"(`+)(?:(?!\1).)*\1", lambda match: "x" * len(match[0]), text)


def anchors(path: Path) -> set[str]:
    found: dict[str, int] = {}
    ids = set()
    for line in FENCE.sub("", path.read_text(encoding="utf-8")).splitlines():
        heading = re.match(r"#{1,6} +(.*?) *#*$", line)
        if not heading:
            continue
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        ids.add(f"{slug}-{count}" if count else slug)
    return ids


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_hold_in_the_repository(path):
    text = without_code(path.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = unquote(link).partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: no such heading"


# Messages.


def messages_of_the_code() -> list[str]:
    """Every string of the package and of the Makefile, with … for what is filled in."""
    found = [(ROOT / "Makefile").read_text()]
    for path in sorted((ROOT / "rpo_verl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [" ".join(text.split()) for text in found]


def test_messages_are_quoted_as_the_code_has_them():
    texts = messages_of_the_code()
    quoted = [body for _, kind, body in FENCE.findall((ROOT / "docs" / "troubleshooting.md").read_text())
              if kind == "text"]  # fmt: skip
    assert len(quoted) > 25
    for message in quoted:
        # A value may be part of a text, or the text part of a value: pieces in order, in one string of the code.
        pieces = [re.escape(piece.strip()) for piece in " ".join(message.split()).split("…") if piece.strip(" .:();")]
        pattern = re.compile(".*".join(pieces))
        assert any(pattern.search(text) for text in texts), f"no message of the code reads {message!r}"


# Commands.


def commands(path: Path) -> list[str]:
    """Command lines of the `bash` blocks, comments taken off, continued lines joined."""
    found = []
    for indent, kind, body in FENCE.findall(path.read_text(encoding="utf-8")):
        if kind not in ("bash", "sh", "shell", "console"):
            continue
        body = re.sub(rf"^{indent}", "", body, flags=re.MULTILINE).replace("\\\n", " ")
        lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in body.splitlines())
        found += [" ".join(line.split()) for line in lines if line]
    return found


COMMANDS = list(dict.fromkeys(command for name in GUIDES for command in commands(ROOT / name)))


def is_run_here(command: str) -> bool:
    return any(re.fullmatch(pattern, command) for pattern in RUN_HERE)


def test_guides_have_commands():
    for name in GUIDES:
        assert commands(ROOT / name), f"no command found in {name}"


@pytest.mark.parametrize("command", [command for command in COMMANDS if not is_run_here(command)])
def test_every_other_command_is_run_somewhere(command):
    matching = [(found, where) for pattern, where in RUN_ELSEWHERE.items() if (found := re.fullmatch(pattern, command))]
    if not matching:
        excused = [(found, name) for pattern, (_, name) in NOT_RUN.items() if (found := re.fullmatch(pattern, command))]
        assert excused, f"{command!r} is in no table: run it here, or say which test runs it"
        for found, name in excused:
            for word in re.findall(r"[a-z][\w-]*[a-z]", found[1] or ""):
                assert word in (ROOT / name).read_text(), f"{command!r}: {name} knows no {word}"
    for found, (name, fragment) in matching:
        files = [ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).glob("test_*.py"))
        assert any(found.expand(fragment) in file.read_text() for file in files), f"{name} has no {fragment!r}"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_knows_the_target(command):
    """A dry run; the set-up counts as done."""
    done = subprocess.run(
        ["bash", "-c", f"{command} --dry-run --old-file setup --old-file .venv/installed"],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if "recipes/" in command])
def test_knobs_and_scripts_of_recipes_exist(command):
    script = ROOT / re.search(r"recipes/\S+\.sh", command)[0]
    text = script.read_text() + "".join(path.read_text() for path in (ROOT / "recipes").glob("*.sh"))
    text += "".join((script.parent / name).read_text() for name in re.findall(r"/(run_\S+?\.sh)\"", text)
                    if (script.parent / name).is_file())  # fmt: skip
    for knob in re.findall(r"^(?:([A-Z_]+)=\S+ )", command) + re.findall(r" ([A-Z_]+)=", command):
        assert re.search(rf"\$\{{{knob}:", text), f"{script.name} has no knob {knob}"


def test_options_of_our_own_commands_exist():
    """Sub-commands and options, held against what the command line offers."""
    from typer.main import get_command

    from rpo_verl.tools.cli.main import app

    seen = 0
    for command in COMMANDS:
        words = command.replace("VERL_PLATFORM=cpu ", "").split()
        if words[0] != "rpo-verl":
            continue
        node, rest = get_command(app), words[1:]
        while hasattr(node, "commands") and rest and rest[0] != "--help":
            assert rest[0] in node.commands, f"{command!r}: no command {rest[0]}"
            node, rest = node.commands[rest[0]], rest[1:]
        offered = {name for parameter in node.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for option in (word.split("=")[0] for word in rest if word.startswith("--") and word != "--help"):
            assert option in offered, f"{command!r}: no option {option}"
        seen += 1
    assert seen


def test_the_cheap_commands_run(tmp_path):
    """As a reader would: one after the other, in a folder that looks like a checkout."""
    for path in ROOT.iterdir():
        if path.name not in ("data", "runs", "outputs", ".venv"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    outputs = {}
    for command in filter(is_run_here, COMMANDS):
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        outputs[command] = done.stdout
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    (preflight,) = (output for command, output in outputs.items() if "--cfg job" in command)
    assert isinstance(yaml.safe_load(preflight[preflight.index("# @package rpo") :]), dict)
    assert (tmp_path / "data" / "train.parquet").exists()
    assert any("doctor" in command for command in outputs)
