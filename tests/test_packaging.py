"""The wheel: it builds without the network, holds the package with its data, and imports."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import jaxrlhf

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command: str, cwd: Path) -> str:
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    if not importlib.util.find_spec("hatchling"):
        pytest.skip("the build backend hatchling is not installed; it comes with the extra `test`")
    # A copy, so that nothing is written into the checkout and no stray file of it is packed.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("jaxrlhf", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "wheel", *offline, "-w", "dist", ".", cwd=source)
    (path,) = (source / "dist").iterdir()
    return path


def test_the_wheel_holds_the_package_its_constitutions_and_nothing_else(wheel):
    assert wheel.name == f"jaxrlhf-{jaxrlhf.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxrlhf").rglob("*.py")}
    constitutions = (ROOT / "configs" / "constitutions").iterdir()
    expected |= {f"jaxrlhf/constitutional/shipped/{path.name}" for path in constitutions}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_imports_from_a_clean_folder(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    # -P and the working directory keep the checkout off the path; the wheel's folder comes first.
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import jaxrlhf, jaxrlhf.losses, jaxrlhf.cli\n"
        "from jaxrlhf.constitutional import constitution\n"
        "assert len(constitution.load('default').principles) >= 16\n"
        f"assert jaxrlhf.__file__.startswith({str(site)!r}), jaxrlhf.__file__\n"
        "sys.exit(jaxrlhf.cli.main(['--version']))"
    )
    out = run(sys.executable, "-P", "-c", code, cwd=tmp_path)
    assert out.startswith(f"jaxrlhf {jaxrlhf.__version__}")


def test_the_command_line_entry_point_exists(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "jaxrlhf = jaxrlhf.cli:main" in archive.read(name).decode()


def test_the_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"]]
    for extra in ("test", "dev", "judges", "parity"):
        wanted += extras[extra]
    names = {re.split(r"[\[<>=;~! ]", requirement)[0] for requirement in wanted} - {"jaxrlhf"}
    assert sorted(names - set(pins)) == []
    assert not [line for line in lines if "/" in line or "--" in line]


def test_the_scripts_are_valid_shell():
    scripts = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]
    assert len(scripts) >= 5
    for script in scripts:
        run("bash", "-n", str(script), cwd=ROOT)
