"""The pages for people are true: the site builds, and every block of code on every page runs or says why it doesn't."""

from __future__ import annotations

import ast
import getpass
import importlib.util
import json
import os
import pkgutil
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click
import mlflow
import pytest

import mlflow_trt

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENTRIES = {"mlflow": "mlflow.cli:cli", "uvicorn": "uvicorn.main:main", **PROJECT["scripts"]}
main: click.Group = pkgutil.resolve_name(ENTRIES["mlflow-trt"])

RUN = ("python", "bash", "console")
SHOWN = ("text", "yaml", "json")
REASONS = ("needs a GPU", "needs a cluster", "changes this machine", "output only")
PORTS = ("8000", "8001", "5001")
BLOCK_SECONDS = 150

NOT_RUN = re.compile(r"<!-- not run: (.*?) -->")
STARTS_FROM = re.compile(r"<!-- starts from: (.*?) -->")


# --- reading pages ---


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    line: int
    """Of its fence, counted from 1."""
    source: str
    reason: str | None
    """Why it is not run, as the comment above it says."""


@dataclass(frozen=True)
class Command:
    """A line of a console block, and what the page shows that it prints."""

    source: str
    output: str


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    lines = text.splitlines()
    above = ""
    start = None
    for number, line in enumerate(lines):
        fence = re.match(r"( *)(```+)\s*([^\s`]*)", line)
        if start is None:
            if fence:
                start, (indent, ticks, language) = number, fence.groups()
            elif line.strip():
                above = line.strip()
        elif re.fullmatch(re.escape(ticks) + r"`*", line.strip()):
            inner = [text.removeprefix(indent) for text in lines[start + 1 : number]]
            reason = NOT_RUN.fullmatch(above)
            found.append(Block(language, start + 1, "\n".join(inner) + "\n", reason and reason[1]))
            start, above = None, ""
    assert start is None, f"the block of line {start} does not end"
    return found


def commands(source: str) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    for line in source.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], ""))
        else:
            assert found, "a console block begins with a command: $ …"
            found[-1] = Command(found[-1].source, f"{found[-1].output}{line}\n")
    return found


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def unaccounted(text: str) -> list[str]:
    """What is wrong with how a page's blocks are labelled."""
    found = []
    for block in blocks(text):
        if block.language not in (*RUN, *SHOWN):
            found.append(f"line {block.line}: the language {block.language!r} is none of {', '.join((*RUN, *SHOWN))}")
        if block.reason is not None and block.reason not in REASONS:
            found.append(f"line {block.line}: the reason {block.reason!r} is none of {', '.join(REASONS)}")
        if block.reason is not None and block.language in SHOWN:
            found.append(f"line {block.line}: a block of {block.language} is never run and needs no reason")
        if block.language == "console" and block.reason is None and not block.source.startswith("$ "):
            found.append(f"line {block.line}: a console block begins with a command")
    reasons = len(re.findall("^ *<!-- not run", text, re.MULTILINE))
    if reasons != sum(block.reason is not None for block in blocks(text)):
        found.append("a comment 'not run' is not right above a block")
    return found


def unknown_words(source: str) -> list[str]:
    """Commands and options of ``mlflow-trt`` and targets of ``make`` that a shell text uses and that are not there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = []
    for line in source.replace("\\\n", " ").splitlines():
        for part in re.split(r"\||&|;|\$\(|\)", line):
            words = shlex.split(part, comments=True)
            if words[:1] == ["make"]:
                found += [f"make {w}" for w in words[1:] if "=" not in w and w not in targets]
            if "mlflow-trt" in words:
                found += _unknown(words[words.index("mlflow-trt") + 1 :])
    return found


def _unknown(words: list[str]) -> list[str]:
    command: click.Command = main
    if words and not words[0].startswith("-"):
        if words[0] not in main.commands:
            return [f"mlflow-trt {words[0]}"]
        command = main.commands[words.pop(0)]
    known = {"-h", "--help"} | {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    return [f"{command.name} {w}" for w in words if re.match("--?[a-z]", w) and w.partition("=")[0] not in known]


# --- running pages ---


class Session:
    """The blocks of one page, run in order in one folder: Python here, everything else in one shell."""

    def __init__(self, folder: Path, page: Path, variables: Mapping[str, str]) -> None:
        self.page = page
        self._variables = variables
        self._names: dict[str, object] = {"__name__": "__main__"}
        self._ports = {port: str(_free_port()) for port in PORTS}
        self._folder = folder / "blocks"
        self._folder.mkdir()
        self._count = 0
        self._token = f"{os.getpid()}-{time.monotonic_ns()}"
        read, write = os.pipe()
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[write],
            text=True,
            start_new_session=True,
        )
        self._done, self._write = os.fdopen(read), write
        os.close(write)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the shell and whatever a block left running, by what all of it inherited."""
        self._shell.kill()
        self._shell.wait()
        self._done.close()
        quiet = 0
        while quiet < 3:  # a process that is becoming another program shows nothing for a moment
            quiet = 0 if self._kill() else quiet + 1
            time.sleep(0.02)

    def _kill(self) -> bool:
        mark = f"DOCS_SESSION={self._token}".encode()
        found = False
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in environ.read_bytes().split(b"\0"):
                    os.kill(int(environ.parent.name), signal.SIGKILL)
                    found = True
        return found

    def run(self, block: Block) -> None:
        """Runs a block.

        Raises:
            AssertionError: It failed, or printed something else than the page shows.
        """
        where = f"{self.page.name}, line {block.line}"
        source = re.sub("|".join(rf"\b{port}\b" for port in PORTS), lambda m: self._ports[m[0]], block.source)
        if block.language == "python":
            # The lines are those of the page, so that tracebacks and inspect.getsource find them.
            exec(compile("\n" * block.line + source, str(self.page), "exec"), self._names)
        elif block.language == "bash":
            status, output = self._sh(source, "set -e; ")
            assert status == 0, f"{where}: exit status {status}\n{output}"
        else:
            previous = 0
            for command in commands(source):
                status, output = self._sh(f"(exit {previous})\n{command.source}")
                printed = output.partition(_ERRORS)[0]
                assert comparable(printed) == comparable(command.output), f"{where}: {command.source}\n{output}"
                previous = status

    def _sh(self, source: str, before: str = "") -> tuple[int, str]:
        """Runs shell commands; answers their exit status and what they printed."""
        self._count += 1
        script, out, err = (self._folder / f"{self._count}.{suffix}" for suffix in ("sh", "out", "err"))
        script.write_text(source)
        assert self._shell.stdin is not None
        # With set -e a failure ends the shell; the trap then answers.
        line = f"trap 'echo $? >&{self._write}' EXIT; {before}. {script} </dev/null >{out} 2>{err}; "
        self._shell.stdin.write(f"{line}echo $? >&{self._write}; set +e; trap - EXIT\n")
        self._shell.stdin.flush()
        status = self._answer(source)
        return status, f"{out.read_text()}{_ERRORS}{err.read_text()}"

    def _answer(self, source: str) -> int:
        ready, _, _ = select.select([self._done], [], [], BLOCK_SECONDS)
        assert ready, f"{self.page.name}: not done after {BLOCK_SECONDS} s:\n{source}"
        text = self._done.readline()
        assert text, f"{self.page.name}: the shell ended in\n{source}"
        return int(text)

    def _environment(self) -> dict[str, str]:
        # What runs is this interpreter with this source, however the package is installed.
        bin_folder = self._folder / "bin"
        bin_folder.mkdir()
        for command, entry in ENTRIES.items():
            module, _, function = entry.partition(":")
            script = bin_folder / command
            script.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
            script.chmod(0o755)
        python = bin_folder / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        environment = {**os.environ, **self._variables}
        path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        return {
            **environment,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": path,
            "COLUMNS": "110",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "DOCS_SESSION": self._token,
        }


_ERRORS = "\n--- standard error ---\n"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def comparable(output: str) -> list[str]:
    """The words of an output, without what differs between runs: ids, times, sizes, who ran it, the columns' widths."""
    me = f"{getpass.getuser()}@{socket.gethostname()}"
    text = output.replace(me, "WHO").replace("root@vm", "WHO")
    text = re.sub(r"\b[0-9a-f]{12}\b", "ID", text)
    text = re.sub(r"\b\d{4}-\d\d-\d\dT[\d:]+\+00:00", "WHEN", text)
    text = re.sub(r"\b\d{1,3}(,\d{3})+ bytes", "N bytes", text)
    return re.sub("─+", " ", text).split()


def run_page(page: Path, folder: Path, variables: Mapping[str, str] = {}) -> int:
    """Runs all blocks of a page that are to be run, with these variables in its shell; answers how many."""
    with Session(folder, page, variables) as session:
        wanted = [b for b in blocks(page.read_text(encoding="utf-8")) if b.language in RUN and b.reason is None]
        for block in wanted:
            session.run(block)
    return len(wanted)


def runnable() -> list[Path]:
    """Pages with blocks to run, those with most of them first: so no worker is alone with one at the end."""

    def count(page: Path) -> int:
        return sum(b.language in RUN and b.reason is None for b in blocks(page.read_text(encoding="utf-8")))

    return sorted(filter(count, pages()), key=count, reverse=True)


# --- the site ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.xdist_group("site")
def test_the_site_has_every_page(site):
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).exists()
    assert (site / "benchmarks/results/2026-11-25-h100-80gb-hbm3-serving.png").exists()


@pytest.mark.xdist_group("site")
def test_the_site_names_every_command_and_option(site):
    text = (site / "reference/cli.html").read_text(encoding="utf-8")
    for command in main.commands.values():
        assert f'id="mlflow-trt-{command.name}"' in text
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(option in text for option in parameter.opts), parameter


@pytest.mark.xdist_group("site")
def test_the_site_describes_every_public_name(site):
    text = (site / "reference/api.html").read_text(encoding="utf-8")
    assert re.findall(r"^::: (\S+)$", (DOCS / "reference/api.md").read_text(), re.MULTILINE)
    for public in mlflow_trt.__all__:
        assert f'id="mlflow_trt.{public}"' in text
    assert not re.search(r":(func|class|mod|meth|attr|data):", text)


# --- blocks ---


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_block_is_accounted_for(page):
    assert unaccounted(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", pages(), ids=name)
def test_what_is_not_run_is_right_as_far_as_can_be_told(page):
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "python" and block.reason is not None:
            ast.parse(block.source)
        elif block.language == "bash" and block.reason is not None:
            assert unknown_words(block.source) == [], f"{name(page)}, line {block.line}"
        elif block.language == "console" and block.reason is not None:
            for command in commands(block.source):
                assert unknown_words(command.source) == [], f"{name(page)}, line {block.line}"


@pytest.mark.parametrize("page", pages(), ids=name)
def test_commands_and_options_in_the_text_exist(page):
    every = {o for c in main.commands.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`\n]+)`", text):
        if code.startswith(("mlflow-trt ", "make ")):
            assert unknown_words(code.replace("…", "")) == []
        elif (option := re.match(r"--[A-Za-z-]+", code)) and option[0] not in ELSEWHERE:
            assert option[0] in every, code


ELSEWHERE = {"--versionCompatible", "--excludeLeanRuntime", "--saveEngine"}
"""Options of other programs that the text names."""


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links_lead_somewhere(page):
    """As GitHub resolves them; those within the site are checked by MkDocs too."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http", "#", "mailto:")):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def _classifier(folder: Path, champion: bool) -> None:
    """Two versions of one network in the registry, which the tutorial leaves."""
    for _ in range(2):
        mlflow_trt.log_model(folder, name="classifier", registered_model_name="classifier")
    if champion:
        mlflow.MlflowClient().set_registered_model_alias("classifier", "champion", "1")


STARTS: Mapping[str, Callable[[Path], None]] = {
    "the classifier": lambda folder: _classifier(folder, champion=True),
    "the classifier without an alias": lambda folder: _classifier(folder, champion=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", runnable(), ids=lambda page: "-".join(page.relative_to(ROOT).parts[-2:]))
def test_page(page, tmp_path, request, monkeypatch, warm_programs):
    """All blocks of a page run in order.

    The short name is part of the folder's, of which pytest takes 30 characters: MLflow keeps its connection to a
    database, and the next page needs one of another name.
    """
    torch = pytest.importorskip("torch", reason="needs the conversion extra")
    if torch.cuda.is_available():
        pytest.skip("the pages show what a machine without a GPU prints")
    monkeypatch.syspath_prepend(tmp_path)  # what a page writes, it may import
    monkeypatch.delitem(sys.modules, "net", raising=False)
    mlflow.search_experiments()  # makes the database here, where that takes no time; a command would migrate a new one
    for start in STARTS_FROM.findall(page.read_text(encoding="utf-8")):
        STARTS[start](request.getfixturevalue("classifier_folder"))
    assert run_page(page, tmp_path, warm_programs) > 0


def test_most_pages_run_something():
    """So that a mistake in reading pages does not pass for a page without code."""
    assert {"README.md", "docs/tutorial.md", "docs/how-to/promote.md"} <= set(map(name, runnable()))


# --- what finds all that can fail ---

GOOD = """
```bash
export A=1
echo one > file
false || true
```

```python
from pathlib import Path

text = Path("file").read_text()
```

```console
$ echo $A; cat file
1
one
$ false
$ echo $?
1
```

```python
assert text == "one\\n"
```
"""


def test_blocks_share_a_folder_variables_and_names(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(GOOD)
    assert unaccounted(GOOD) == []
    assert run_page(page, tmp_path) == 4


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("echo one", "echo two"),
        ("false || true", "false\ntrue"),
        ("false || true", "exit 0"),
        ("false || true", "f() { false; true; }; f"),
        ('Path("file")', 'Path("other")'),
        ("text ==", "txt =="),
        ("\n1\none", "\n2\none"),
        ("$ false", "$ true"),
    ],
)
def test_a_broken_block_fails(tmp_path, right, wrong):
    page = tmp_path / "page.md"
    assert right in GOOD
    page.write_text(GOOD.replace(right, wrong, 1))
    with pytest.raises((AssertionError, OSError, NameError)):
        run_page(page, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "```\nx\n```\n",
        "```sh\nx\n```\n",
        "<!-- not run: too slow -->\n```bash\nx\n```\n",
        "<!-- not run: needs a GPU -->\n```text\nx\n```\n",
        "<!-- not run: needs a GPU -->\nwords\n```bash\nx\n```\n",
        "```console\nonly output\n```\n",
    ],
)
def test_a_block_that_is_not_accounted_for_is_found(text):
    assert unaccounted(text)


@pytest.mark.parametrize(
    "source",
    [
        "mlflow-trt deploy x",
        "mlflow-trt log a:b --colour red",
        "pip install $(mlflow-trt inspect m --requires)",
        "echo x | mlflow-trt export-kserve m --gpu 1",
        "make everything",
    ],
)
def test_unknown_commands_and_options_are_found(source):
    assert unknown_words(source)


def test_known_ones_are_not():
    assert unknown_words("pip install $(mlflow-trt inspect models:/a/1 --requirements)  # --colour") == []
    assert unknown_words("mlflow-trt serve m --no-batching --port=1 \\\n  --delay 1 && make test PY=python3") == []


def test_a_server_that_a_page_leaves_is_ended(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nsleep 300 &\necho $! > pid\nsetsid sleep 300 &\necho $! > other\n```\n")
    run_page(page, tmp_path)
    time.sleep(0.2)
    for file in ("pid", "other"):
        state = Path(f"/proc/{(tmp_path / file).read_text().strip()}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


# --- the notebook ---


def _notebook_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_notebook", ROOT / "examples" / "make_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_is_made_from_the_quickstart(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs the docs extra")
    script = _notebook_script()

    made = script.made((ROOT / "examples/quickstart.py").read_text(encoding="utf-8"))

    assert NOTEBOOK.read_text(encoding="utf-8") == made, "run python examples/make_notebook.py"
    nbformat.validate(nbformat.reads(made, as_version=4))
    changed = script.made((ROOT / "examples/quickstart.py").read_text(encoding="utf-8").replace("fp16", "bf16"))
    assert changed != made


@pytest.mark.slow
def test_the_notebook_s_cells_run_in_order(tmp_path, capsys):
    for module in ("torch", "tensorrt_rtx", "sklearn"):
        pytest.importorskip(module)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (training,) = [i for i, cell in enumerate(cells) if "epochs: int = 10" in cell]
    cells[training] = cells[training].replace("epochs: int = 10", "epochs: int = 1")  # examples are tested with all
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "logged it as digits version 1" in printed
    assert "accuracy, logged version" in printed
    assert (tmp_path / ".demo/mlflow.db").exists()
