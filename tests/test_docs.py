"""Commands, paths, names and links of README and docs, read from the Markdown: new ones count too.

Installing takes minutes and gigabytes, and so is left out unless it is asked for:

    DDAE_JAX_INSTALL=1 bash launch/test.sh tests/test_docs.py -k installs
"""

import importlib
import importlib.metadata
import os
import pkgutil
import re
import runpy
import shlex
import shutil
import subprocess
import venv

import pytest
from packaging.requirements import Requirement

import tiny
from ddae_jax.config.checks import check_config
from ddae_jax.jobs import cli
from ddae_jax.jobs.commands import COMMANDS

PAGES = [
    *(tiny.ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((tiny.ROOT / "docs").glob("*.md")),
]
PICTURES = sorted((tiny.ROOT / "docs" / "figures").glob("*.svg"))
OF_JOBS = ("pretrain", "finetune", "segment")


def commands(page):
    """The commands of a page, each in one line, of blocks of shell and of code within lines."""
    text = page.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    for line in lines:
        # What a shell takes for a comment; and two commands of a line are two.
        for part in re.sub(r"(^|\s)#.*", "", line).split("&&"):
            if part.strip():
                yield part.strip()


def all_that_begin(*words):
    found = {}
    for page in PAGES:
        for line in commands(page):
            if line.startswith(words):
                found.setdefault(line, page.name)
    return [pytest.param(line, id=f"{page}: {line[:60]}") for line, page in found.items()]


INSTALLS = all_that_begin("pip install ")
RUNS = [
    p for p in all_that_begin("python -m ddae_jax.") if "..." not in p.values[0] and "--" in p.id
]


def test_the_commands_are_found():
    installs, runs = ([p.values[0] for p in found] for found in (INSTALLS, RUNS))
    assert {'pip install "jax[cuda13]"', "pip install .", "pip install tifffile"} <= set(installs)
    assert 'pip install "jax[tpu]" -r requirements.txt' in installs
    assert len(runs) > 15
    assert "python -m ddae_jax.evaluate --workdir=runs/digits --task=knn" in runs


@pytest.mark.parametrize("line", INSTALLS)
def test_what_is_to_be_installed_is_there_by_its_name(line):
    """As far as this can be seen without a network."""
    rest = shlex.split(line)[2:]
    while rest:
        word = rest.pop(0)
        if word == "-r":
            assert (tiny.ROOT / rest.pop(0)).is_file()
        elif word != ".":
            requirement = Requirement(word)
            found = importlib.metadata.metadata(requirement.name)
            assert requirement.extras <= set(found.get_all("Provides-Extra") or ())


@pytest.mark.skipif(not os.environ.get("DDAE_JAX_INSTALL"), reason="DDAE_JAX_INSTALL is not set")
@pytest.mark.parametrize("line", INSTALLS)
def test_installs_in_an_empty_environment_as_it_stands_there(line, tmp_path):
    ignored = shutil.ignore_patterns(".*", "runs", "*.egg-info", "build", "__pycache__")
    clone = shutil.copytree(tiny.ROOT, tmp_path / "clone", ignore=ignored)
    venv.create(tmp_path / "venv", with_pip=True)
    path = f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        ["bash", "-ec", f"{line}\npip check\npip list --format=freeze"],
        cwd=clone,
        env=environment | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if line == "pip install .":
        used = [tmp_path / "venv" / "bin" / "python", "-c", "import ddae_jax; print(ddae_jax)"]
        printed = subprocess.run(used, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert str(tmp_path / "venv") in printed.stdout


@pytest.mark.parametrize("line", RUNS)
def test_every_option_and_key_is_known(line, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    name, *arguments = shlex.split(line)[2:]
    name = name.removeprefix("ddae_jax.")
    if name in ("evaluate", "export"):
        cli.parse_flags(arguments, name, COMMANDS[name][0])
        return
    define, _ = COMMANDS[name]
    stands_for_any = re.search(r"--config=[A-Z]+(?= |$)", line)
    arguments = [a for a in arguments if not stands_for_any or a != stands_for_any[0]]
    arguments += ["--config=configs/digits.py"] if stands_for_any else []
    missing = [a for a in ("--workdir=x",) if name in OF_JOBS and "--workdir" not in line]
    flags, _ = cli.read_config_flags([*arguments, *missing], name, define, None)
    if name != "pixel_statistics":  # whose config has no mean yet
        check_config(flags.config)


FOLDERS = ("ddae_jax", "tests", "benchmarks", "configs", "launch", "docs")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_every_path_that_is_named_exists(page):
    pattern = rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w/.-]*\w"
    paths = sorted(set(re.findall(pattern, page.read_text())))
    named = [path for path in paths if not re.search(r"[A-Z]", path)]  # NAME stands for any
    assert [path for path in named if not (tiny.ROOT / path).exists()] == []


def test_every_module_in_a_picture_exists():
    modules = {m for p in PICTURES for m in re.findall(r"[\w/]+\.py", p.read_text())}
    assert "dynamic_loss.py" in modules
    assert [m for m in sorted(modules) if not (tiny.ROOT / "ddae_jax" / m).exists()] == []


def test_the_pictures_are_those_that_their_script_draws():
    drawn = runpy.run_path(str(tiny.ROOT / "docs" / "figures" / "make_architecture.py"))
    assert {path.stem for path in PICTURES} == {"rooms", "batch"}
    for path in PICTURES:
        assert path.read_text() == drawn[path.stem]()


@every_page
def test_every_dotted_name_of_the_package_exists(page):
    text = re.sub(r"https?://\S+", "", page.read_text())
    for name in sorted(set(re.findall(r"\bddae_jax(?:\.[a-zA-Z_]\w*)+", text))):
        assert pkgutil.resolve_name(name), name


def anchors(page):
    """The places of a page that a link can lead to, as GitHub names them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_every_link_within_the_repository_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    broken = []
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []
