"""The package that users install is built from the sdist, outside of this checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(source: Path, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "build", "--no-isolation", *flags, "--outdir", str(out), str(source)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    result = build(ROOT, out)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture
def source(dist: Path, tmp_path: Path) -> Path:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        sdist.extractall(tmp_path, filter="data")
    return next(tmp_path.iterdir())


def test_wheel_built_from_the_sdist_imports_outside_the_checkout(dist: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site")
    assert {"pvae/models/__init__.py", "pvae/guides/__init__.py", "pvae/py.typed"} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"pvae"}

    result = subprocess.run(
        [sys.executable, "-c", "import pvae, pvae.models, pvae.guides; print(pvae.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "site" / "pvae" / "__init__.py")


def test_sdist_holds_what_a_checkout_holds(source: Path) -> None:
    for folder in ("models", "guides"):
        files = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")}
        for copy in (source / folder, source / "pvae" / folder):
            assert {path.relative_to(copy) for path in copy.rglob("*.py")} == files
    for name in ("LICENSE", "Makefile", "README.md", "hatch_build.py", "tests/test_packaging.py"):
        assert (source / name).is_file()


@pytest.mark.parametrize("folder", ["models", "guides"])
def test_link_checked_out_as_text_stops_the_build(folder: str, source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "pvae" / folder)
    (source / "pvae" / folder).write_text(f"../{folder}")
    result = build(source, tmp_path / "out", "--wheel")
    assert result.returncode != 0
    assert f"pvae/{folder} must be a symbolic link to ../{folder}" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not list(tmp_path.glob("out/*.whl"))
