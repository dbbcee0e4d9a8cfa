"""What ships: dependencies, version, marker files, and a README whose commands are the ones that CI runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import llmcore

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert match is not None
    return match.group().lower()


def test_run_time_dependencies_are_four() -> None:
    assert {requirement_name(r) for r in PYPROJECT["project"]["dependencies"]} == {
        "numpy",
        "safetensors",
        "sentencepiece",
        "jinja2",
    }


def test_installed_metadata_names_the_same_dependencies() -> None:
    try:
        requires = metadata.requires("llmcore") or []
    except metadata.PackageNotFoundError:
        pytest.skip("llmcore runs from the source tree, not installed")
    plain = {requirement_name(r) for r in requires if "extra ==" not in r}
    assert plain == {"numpy", "safetensors", "sentencepiece", "jinja2"}


def test_versions_agree() -> None:
    match = re.search(r"project\(llmcore VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    assert match is not None
    assert match.group(1) == PYPROJECT["project"]["version"] == llmcore.__version__


def test_changelog_covers_the_version() -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert llmcore.__version__ in headings


def test_package_is_marked_as_typed() -> None:
    package = Path(llmcore.__file__).parent
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PYPROJECT["project"]["license"] == "Apache-2.0"


def readme_block(name: str) -> list[str]:
    """The commands of the README's fenced block that follows the marker `<!-- ci: name -->`."""
    script = ROOT / ".ci" / "readme-block"
    if not script.is_file():
        pytest.skip("a source distribution has no .ci")
    return subprocess.run([script, name], check=True, capture_output=True, text=True).stdout.splitlines()


def test_readme_has_one_command_to_run_and_one_to_test() -> None:
    assert readme_block("run") == ['pip install . && llmcore run "The prince"']
    assert readme_block("test") == ['pip install ".[test]" && pytest']


def test_extras_of_the_readme_exist() -> None:
    named = set(re.findall(r"\.\[(\w+)\]", (ROOT / "README.md").read_text()))
    assert named <= set(PYPROJECT["project"]["optional-dependencies"])


EXPECTED_WHEELS = {
    "linux": [f"cp3{minor}-manylinux_{arch}" for minor in (11, 12, 13, 14) for arch in ("x86_64", "aarch64")],
    "macos": [f"cp3{minor}-macosx_arm64" for minor in (11, 12, 13, 14)],
    "windows": [f"cp3{minor}-win_amd64" for minor in (11, 12, 13, 14)],
}


@pytest.mark.parametrize("platform", EXPECTED_WHEELS)
def test_wheel_matrix(platform: str) -> None:
    pytest.importorskip("cibuildwheel")
    config = ROOT / "wheels" / "cpu.toml"
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform]
    result = subprocess.run([*command, "--config-file", config, ROOT], check=True, capture_output=True, text=True)
    assert set(result.stdout.split()) == set(EXPECTED_WHEELS[platform])
