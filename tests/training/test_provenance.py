"""Where a run's numbers come from, as provenance.json says it."""

import pathlib
import shutil
import subprocess

from hybrid.workdir import provenance


def git(folder, *words):
    names = ["-c", "user.name=n", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *names, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_a_repository_that_tracks_this_package(tmp_path, monkeypatch):
    project = tmp_path / "project"
    installed = project / ".venv/lib/hybrid/workdir/provenance.py"
    installed.parent.mkdir(parents=True)
    shutil.copy(provenance.__file__, installed)
    git(tmp_path, "init", "-q", "project")
    git(project, "commit", "-q", "--allow-empty", "-m", "another project")
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.describe(pathlib.Path("run"), {}, [])["git_commit"] is None
    git(project, "add", "-f", str(installed))
    git(project, "commit", "-q", "-m", "with a copy of its own")
    assert provenance.describe(pathlib.Path("run"), {}, [])["git_commit"] == git(
        project, "rev-parse", "HEAD"
    )


def test_outside_of_any_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(pathlib.Path("/")))
    assert provenance.describe(pathlib.Path("run"), {}, [])["git_commit"] is None
