"""A file outside of stores appears whole or not at all, and never over somebody else's."""

import os

import pytest

from storage.errors import UserError
from storage.newfile import check_target, new_file


def test_a_file_appears_when_its_block_ends(tmp_path):
    with new_file(tmp_path / "x.csv") as temp:
        temp.write_text("rows")
        assert not (tmp_path / "x.csv").exists() and temp.parent == tmp_path
    assert os.listdir(tmp_path) == ["x.csv"] and (tmp_path / "x.csv").read_text() == "rows"


def test_of_two_writers_the_first_wins(tmp_path):
    with pytest.raises(UserError, match="exists already, made just now"):
        with new_file(tmp_path / "x.csv") as late:
            late.write_text("late")
            with new_file(tmp_path / "x.csv") as early:
                early.write_text("early")
    assert os.listdir(tmp_path) == ["x.csv"] and (tmp_path / "x.csv").read_text() == "early"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("bad"), UserError("mistake")])
def test_a_block_that_fails_leaves_nothing_and_tells_its_own_error(tmp_path, error, force):
    (tmp_path / "old.csv").write_text("old")
    with pytest.raises(error if isinstance(error, type) else type(error)):
        with new_file(tmp_path / ("old.csv" if force else "x.csv"), force=force) as temp:
            temp.write_text("half")
            (tmp_path / f"{temp.name}.wal").write_text("log")
            raise error
    assert os.listdir(tmp_path) == ["old.csv"] and (tmp_path / "old.csv").read_text() == "old"


def test_a_program_that_has_the_old_file_open_keeps_it(tmp_path):
    (tmp_path / "x.csv").write_text("old")
    with open(tmp_path / "x.csv", encoding="utf-8") as reader:
        with new_file(tmp_path / "x.csv", force=True) as temp:
            temp.write_text("new")
        assert reader.read() == "old"
    assert (tmp_path / "x.csv").read_text() == "new"


def test_looking_writes_nothing(tmp_path):
    check_target(tmp_path / "x.csv")
    assert os.listdir(tmp_path) == []
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a device"):
        check_target(tmp_path / "pipe", force=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_told(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        with new_file(tmp_path / "locked" / "x.csv") as temp:
            temp.write_text("rows")
