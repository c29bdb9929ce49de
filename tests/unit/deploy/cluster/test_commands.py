"""The commands that touch no host: init, and what is refused before any is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.commands.cluster import cluster


def ran(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(cluster, [arg.replace("@", f"{folder}/") for arg in args])


def test_init_writes_a_file_that_check_reads(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("gpu[1:3]\n")
    made = ran(tmp_path, "init", "@hosts", "-o", "@cluster.toml", "--engine", "emulated", "--gateway", "gpu2")
    assert made.exit_code == 0, made.output
    assert "3 nodes, gateway gpu2 (read as hosts)" in made.output
    again = ran(tmp_path, "init", "@hosts", "-o", "@cluster.toml")
    assert again.exit_code == 1
    assert "is there already; name another with -o" in again.output


def test_init_names_an_ssh_config_that_ssh_would_not_read_by_itself(tmp_path: Path) -> None:
    (tmp_path / "lab").write_text("Include more\nHost a\n  HostName 10.0.0.1\n")
    (tmp_path / "more").write_text("Host b\n  HostName 10.0.0.2\n")
    made = ran(tmp_path, "init", "@lab", "-o", "@cluster.toml")
    assert made.exit_code == 0, made.output
    text = (tmp_path / "cluster.toml").read_text()
    assert f'config = "{tmp_path.resolve()}/lab"' in text
    assert 'address = "10.0.0.2"\nssh = "b"' in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("init", "@none"), "none: cannot be read: No such file or directory"),
        (("init", "@binary"), "binary: is no text in UTF-8"),
        (("init", "@empty"), "empty: is empty; give a file that names hosts"),
        (("check", "-f", "@none.toml"), "none.toml: no such file; give the path of a TOML file"),
        (("check", "-f", "@bad.toml"), 'bad.toml, line 1: no host is a node; write roles = ["node"]'),
        (("status", "-f", "@good.toml"), "good.d: nothing has been installed yet; run: astrolabe cluster install"),
        (("rollback", "-f", "@good.toml"), "good.d: knows no release before this one"),
        (("install", "-f", "@good.toml", "--wheel", "@none.whl"), "none.whl: no such file; give a wheel"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "empty").write_text("# nobody\n")
    (tmp_path / "bad.toml").write_text('[[hosts]]\nname = "a"\naddress = "a"\nroles = ["gateway"]\n')
    (tmp_path / "good.toml").write_text(
        '[[groups]]\nname = "g"\n[[hosts]]\nname = "a"\naddress = "a.invalid"\nroles = ["node", "gateway"]\n'
    )
    done = ran(tmp_path, *args)
    assert done.exit_code == 1
    assert words in done.output
