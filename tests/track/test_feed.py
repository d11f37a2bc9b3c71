"""A tracker that fails is one line and hinders nobody; mistakes on the command line are one line, too."""

import json
import socket

import pytest

from flows.cli import main
from flows.jobs import JOBS
from pipeline.config import load_config
from pipeline.config.trackers import Mlflow, TensorBoard, Wandb
from pipeline.track.apart import feed_apart
from pipeline.track.feed import describe, feed
from pipeline.track.interface import check_libraries
from storage.errors import ConfigError, UserError
from storage.snapshot import take_snapshot
from tests.track.test_trackers import needs


@needs("mlflow")
@needs("tensorboard")
def test_a_server_that_is_down_is_one_line_without_the_password_and_hinders_no_other(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pass-word@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = feed(store, "made", 0, [Mlflow(), TensorBoard(folder=str(tmp_path))])
    assert said["tensorboard"] == "ok" and said["mlflow"].startswith("MlflowException: API request to http://***@127")
    assert "pass-word" not in said["mlflow"] and "\n" not in said["mlflow"]


@needs("wandb")
def test_a_missing_api_key_is_one_line_and_nobody_is_asked_for_it(store, tmp_path):
    said = feed(store, "made", 0, [Wandb(folder=str(tmp_path))])
    assert said == {"wandb": "UsageError: No API key configured. Use `wandb login` to log in."}


@needs("mlflow")
def test_a_tracker_that_hangs_is_ended(store):
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        tracker = Mlflow(uri=f"http://127.0.0.1:{silent_server.getsockname()[1]}")
        said = feed(store, "made", 0, [tracker], timeout_s=2)
    assert said == {"mlflow": "did not answer within 2 s; the next round, or `opd track`, tries again"}


@needs("tensorboard")
def test_a_folder_that_cannot_be_written_is_one_line(store, tmp_path):
    (tmp_path / "file").write_text("taken")
    said = feed(store, "made", 0, [TensorBoard(folder=str(tmp_path / "file"))] * 2)
    assert list(said) == ["tensorboard", "tensorboard 2"]
    assert all(line.startswith("NotADirectoryError") for line in said.values())


@needs("tensorboard")
def test_a_bug_of_ours_is_no_problem_of_the_trackers(store, tmp_path):
    about = describe(take_snapshot(store, "made"), "made")
    with pytest.raises(RuntimeError, match="tensorboard.py"):
        feed_apart(TensorBoard(folder=str(tmp_path)), about, lambda number: [(1, {"train/loss": "text"})], 0)


@needs("tensorboard")
def test_a_damaged_store_is_not_the_trackers_fault(store, tmp_path):
    def damaged(number):
        raise KeyError("damaged")

    with pytest.raises(KeyError):
        feed_apart(TensorBoard(folder=str(tmp_path)), describe(take_snapshot(store, "made"), "made"), damaged, 0)


@pytest.mark.parametrize("library", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_library_is_one_line_that_says_how_to_get_it(store, tmp_path, monkeypatch, library):
    (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError('no {library}', name={library!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"type": library} | ({"folder": str(tmp_path / "x")} if library != "mlflow" else {})
    said = JOBS["track"](lambda *_: None, store=store.url, run="made", number=0, trackers=[settings])
    assert said == {library: f"tracker {library} needs {library}, which is not installed here: "
                             "pip install 'opd-rounds[trackers]'"}


def test_a_missing_library_is_found_before_anything_is_played(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match="^tracker wandb needs wandb, which is not installed here"):
        check_libraries([Wandb()])


def test_a_round_that_is_not_committed_is_refused(store):
    with pytest.raises(UserError, match="round 3 of made cannot be tracked: it is not committed"):
        feed(store, "made", 3, [TensorBoard()])


# --- the command and the config ---


def opd(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@needs("tensorboard")
def test_opd_track_shows_all_rounds_and_says_so(store, tmp_path, capsys):
    arguments = ("track", "made", "--to", "tensorboard", "--set", f"folder={tmp_path / 'curves'}", "--store", store.url)
    code, out, _ = opd(capsys, *arguments)
    assert code == 0 and out == "tensorboard shows 3 rounds of made\n"
    code, out, _ = opd(capsys, *arguments, "--json")
    assert json.loads(out) == {"run": "made", "rounds": 3, "tracker": "tensorboard", "said": "ok"}
    (tmp_path / "file").write_text("taken")
    code, out, _ = opd(capsys, *arguments[:4], "--set", f"folder={tmp_path / 'file'}", "--store", store.url)
    assert code == 1 and out.startswith("tensorboard: NotADirectoryError")


@pytest.mark.parametrize(("arguments", "said"), [
    (["made", "--to", "tensorbord"], "there is no tracker 'tensorbord'; did you mean tensorboard?"),
    (["made", "--to", "file"], "there is no tracker 'file'; there are tensorboard, wandb, mlflow, trackio"),
    (["made", "--to", "wandb", "--set", "projct=x"], "--set projct: wandb has no such key; did you mean project?"),
    (["made", "--to", "wandb", "--set", "project=a/b"], "--set project: String should match pattern"),
    (["made", "--to", "wandb", "--set", "mode=disabled"], "--set mode: Input should be 'online' or 'offline'"),
    (["made", "--to", "wandb", "--set", "mode"], "not of the form a.b=value"),
    (["made", "--to", "mlflow", "--set", "uri=./mlruns"], "is a plain folder, which MLflow no longer writes"),
    (["mad", "--to", "tensorboard"], "run mad is not in the store"),
    (["../made", "--to", "tensorboard"], "is not clean"),
])
def test_a_mistake_on_the_command_line_is_one_line(store, capsys, arguments, said):
    code, _, error = opd(capsys, "track", *arguments, "--store", store.url)
    assert code == 2 and said in error and error.strip().count("\n") == 0


@pytest.mark.parametrize("uri", ["http://me:pass-word@host", "postgresql://me:pass-word@host/db",
                                 "http://me:pass/word@host", "https://host?token=pass-word"])
def test_a_password_in_the_config_is_refused_and_not_repeated(tmp_path, capsys, uri):
    file = tmp_path / "x.toml"
    file.write_text(f"""run = "a"\nstudent.path = "s"\nteacher.path = "t"\nprompts.source = {{type = "hub", name = "n"}}
[[tracker]]\ntype = "mlflow"\nuri = "{uri}"\n""")
    with pytest.raises(ConfigError, match="uri holds a password: leave it out and set MLFLOW") as said:
        load_config(file)
    assert "word" not in str(said.value).replace("password", "").replace("PASSWORD", "")


def test_trackers_of_a_config_are_read_and_their_mistakes_named(tmp_path):
    smallest = 'run = "a"\nstudent.path = "s"\nteacher.path = "t"\nprompts.source = {type = "hub", name = "n"}\n'
    file = tmp_path / "x.toml"
    file.write_text(smallest + '[[tracker]]\ntype = "tensorboard"\n[[tracker]]\ntype = "mlflow"\n'
                               'uri = "sqlite:///m.db"\n')
    assert load_config(file).tracker == [TensorBoard(), Mlflow(uri="sqlite:///m.db")]
    file.write_text(smallest + '[[tracker]]\ntype = "tensorboard"\nfoldr = "x"\n')
    with pytest.raises(ConfigError, match="unknown key tracker.0.foldr; did you mean tracker.0.folder?"):
        load_config(file)
    file.write_text(smallest + '[[tracker]]\ntype = "wandbb"\n')
    with pytest.raises(ConfigError, match="tracker.0.type = 'wandbb' is not one of .*did you mean 'wandb'?"):
        load_config(file)
