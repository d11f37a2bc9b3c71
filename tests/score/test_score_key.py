import copy

import pytest

from pipeline.config import RunConfig, apply_settings
from pipeline.score.key import scoring_key, teacher_key

CONFIG = {"run": "a", "student": {"path": "s"}, "teacher": {"path": "t"},
          "prompts": {"source": {"type": "file", "path": "p.jsonl"}}}
DOCUMENT = {"teacher": {"fingerprint": "f" * 64, "config_hash": "c", "tokenizer_hash": "1", "template_hash": None,
                        "path": "t"},
            "vocabulary": {"shared": 300, "warnings": []}, "versions": {"transformers": "5.19.0", "torch": "2.13.0"}}


def keys(settings: list[str] = (), student: str = "a" * 64, **facts) -> tuple[str, str]:
    config = RunConfig.model_validate(apply_settings(copy.deepcopy(CONFIG), list(settings)))
    document = {**DOCUMENT, "teacher": {**DOCUMENT["teacher"], **facts}}
    return teacher_key(document, config), scoring_key(document, config, student)[0]


def test_the_folder_is_named_by_the_first_eight_digits():
    config = RunConfig.model_validate(CONFIG)
    full, short = scoring_key(DOCUMENT, config, "a" * 64)
    assert len(full) == 64 and full.startswith(short) and len(short) == 8


@pytest.mark.parametrize("settings", [["score.teacher_top_k=64"], ["score.student_top_k=8"], ["score.grid=16"],
                                      ["score.student_log_probs_at_teacher_topk=true"], ["student.dtype=bfloat16"]])
def test_widths_grid_and_student_change_the_scoring_key_and_not_the_teachers(settings):
    assert keys(settings)[0] == keys()[0]
    assert keys(settings)[1] != keys()[1]


def test_another_checkpoint_of_the_student_changes_the_scoring_key_alone():
    assert keys(student="b" * 64)[0] == keys()[0]
    assert keys(student="b" * 64)[1] != keys()[1]


@pytest.mark.parametrize("changes", [
    {"fingerprint": "e" * 64}, {"tokenizer_hash": "2"}, {"template_hash": "3"},
    {"config_hash": "d"}, {"settings": ["teacher.dtype=bfloat16"]}, {"settings": ["teacher.attention=eager"]}])
def test_whatever_changes_the_teachers_numbers_changes_both_keys(changes):
    assert keys(**changes)[0] != keys()[0]
    assert keys(**changes)[1] != keys()[1]


@pytest.mark.parametrize("name, other", [("torch", "2.12.0"), ("transformers", "5.18.0")])
def test_another_version_of_what_computes_changes_both_keys_and_the_build_for_a_device_does_not(name, other):
    config = RunConfig.model_validate(CONFIG)

    def both(**versions):
        document = {**DOCUMENT, "versions": {**DOCUMENT["versions"], **versions}}
        return teacher_key(document, config), scoring_key(document, config, "a" * 64)[0]

    assert all(mine != theirs for mine, theirs in zip(both(**{name: other}), both()))
    assert both(torch="2.13.0+cpu") == both(torch="2.13.0+cu130") == both()


@pytest.mark.parametrize("settings", [["score.batch_tokens=64"], ["score.head_rows=16"], ["teacher.path=elsewhere"],
                                      ["objective.type=sampled_token"], ["rounds=9"]])
def test_what_changes_no_number_changes_no_key(settings):
    assert keys(settings) == keys()
