"""install.py, run as the host runs it at every start: it prints something only if the host is too old."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.script.extension import ROOT


def install(tmp_path, torch):
    """Run it with this version of torch, or with no torch at all."""
    if torch:
        metadata = tmp_path / f"torch-{torch}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n")
    # -S: no site-packages, so Python finds only the metadata on PYTHONPATH
    return subprocess.run(
        [sys.executable, "-S", str(ROOT / "install.py")],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("torch", ["2.1.0", "2.1.2+cu121", "2.13.0+cpu", "2.4.0a0+gitabc123", "10.0.0"])
def test_says_nothing(tmp_path, torch):
    done = install(tmp_path, torch)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("torch", ["1.13.1", "1.13.1+cu117", "1.9.0", "2.0.1+cu118"])
def test_says_what_is_too_old(tmp_path, torch):
    done = install(tmp_path, torch)
    assert done.returncode not in (0, None)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1
    assert "ToDo" in said and torch in said and "2.1 or newer" in said


def test_a_host_without_torch_is_not_its_concern(tmp_path):
    """The host installs torch itself."""
    done = install(tmp_path, None)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_in_this_environment():
    done = subprocess.run([sys.executable, str(ROOT / "install.py")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
