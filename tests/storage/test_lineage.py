import shutil

import pytest
from small_store import contents, make_run, model_folder, play_round

from storage import layout
from storage.errors import IntegrityError, UserError
from storage.lineage import lineage
from storage.rounds import Round, create_run, read_run, starting_checkpoint


def out(store, number: int, run: str = "r"):
    return Round(store, run, number).manifest().checkpoint_out


def test_lineage_goes_back_to_the_base_student(two_rounds):
    found = lineage(two_rounds, out(two_rounds, 1).fingerprint[:12])
    manifests = [Round(two_rounds, "r", number).manifest() for number in (1, 0)]
    assert [each["manifest"] for each in found["rounds"]] == [manifest.id for manifest in manifests]
    assert found["rounds"][0]["rows"] == {"prompts": 6, "rollouts": 6, "tokens": 6, "hidden": 6, "mask": 6, "steps": 3,
                                         "continuation": 3, "evaluation": 6}
    assert found["rounds"][0]["facts"]["mask"] == {"rows": 6, "reasons": {"special": 1}}
    assert found["rounds"][1]["parent"] is None and found["rounds"][0]["parent"] == manifests[1].id
    assert found["base"]["fingerprint"] == starting_checkpoint(two_rounds, "r", 0).fingerprint
    assert found["runs"]["r"]["teacher"] == {"fingerprint": "7ea0"}
    assert found["runs"]["r"]["mask"] == [{"type": "special_tokens"}]
    assert len(found["rounds"][0]["files"]) == 14 and found["also"] == []


def test_a_checkpoint_may_be_named_in_any_way(two_rounds, tmp_path):
    files = out(two_rounds, 0)
    copy = shutil.copytree(two_rounds.root / files.prefix, tmp_path / "copy")
    bare = shutil.copytree(copy, tmp_path / "bare")
    (bare / "round.json").unlink()
    names = [files.fingerprint, files.fingerprint[:4], files.prefix, files.prefix.rstrip("/"),
             files.prefix.split("/")[-2], two_rounds.root / files.prefix, copy, str(bare)]
    found = [lineage(two_rounds, name) for name in names]
    assert all(each == found[0] for each in found) and len(found[0]["rounds"]) == 1


def test_the_base_student_has_learnt_from_nothing(two_rounds):
    found = lineage(two_rounds, starting_checkpoint(two_rounds, "r", 0).fingerprint)
    assert found["rounds"] == [] and found["base"]["fingerprint"] == found["fingerprint"]


def test_weights_that_were_changed_are_not_believed(two_rounds, tmp_path):
    folder = shutil.copytree(two_rounds.root / out(two_rounds, 1).prefix, tmp_path / "copy")
    shutil.copyfile(model_folder(tmp_path / "other", 77) / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(UserError, match="which no round in .* ended with, though its round.json names round 1 of r"):
        lineage(two_rounds, folder)


@pytest.mark.parametrize("name", ["nowhere", "ffffffff", "abc", "", "run=r/checkpoint=9/000000000000", "../.."])
def test_a_checkpoint_that_is_not_there_is_the_users_mistake(two_rounds, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path / "models" / "base")
    (tmp_path / "models" / "base" / "model.safetensors").unlink()
    with pytest.raises(UserError):
        lineage(two_rounds, name)


def test_weights_that_two_rounds_have_in_common_are_told(two_rounds, tmp_path):
    make_run(two_rounds, "a", two_rounds.root / out(two_rounds, 1).prefix)
    found = lineage(two_rounds, starting_checkpoint(two_rounds, "a", 0).fingerprint)
    assert len(found["rounds"]) == 2 and found["also"] == [starting_checkpoint(two_rounds, "a", 0).prefix]
    play_round(two_rounds, "a", 0, tmp_path / "models")
    make_run(two_rounds, "twin", tmp_path / "models" / "base")
    play_round(two_rounds, "twin", 0, tmp_path / "models" / "twin")
    found = lineage(two_rounds, two_rounds.root / out(two_rounds, 0, "twin").prefix)
    assert found["rounds"][0]["run"] == "twin" and len(found["also"]) == 2


def test_a_branch_goes_back_through_its_parent(two_rounds, tmp_path):
    document = read_run(two_rounds, "r")
    manifest = Round(two_rounds, "r", 0).manifest()
    create_run(two_rounds, "b", {**document, "branch": {"run": "r", "round": 1, "manifest": manifest.id}})
    play_round(two_rounds, "b", 1, tmp_path / "branch", variant=5)
    found = lineage(two_rounds, out(two_rounds, 1, "b").fingerprint)
    assert [(each["run"], each["round"]) for each in found["rounds"]] == [("b", 1), ("r", 0)]
    assert set(found["runs"]) == {"b", "r"} and found["rounds"][0]["parent"] == manifest.id


def test_a_broken_chain_is_an_error_and_not_a_short_lineage(two_rounds):
    path = two_rounds.root / layout.manifest("r", 0)
    other = contents(two_rounds.root)["run=r/round=0/plan.json"]
    path.write_bytes(other)
    with pytest.raises(IntegrityError, match="manifest.json is foreign"):
        lineage(two_rounds, out(two_rounds, 1).prefix)
