"""The quickstart's pair is made once, whole, the same each time, and over nobody's folder."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config.model import Model
from pipeline.models import load_model, load_tokenizer, model_facts, vocabulary_agreement
from pipeline.prompts.generated import problems
from pipeline.quickstart.pair import MARKER, STUDENT, TEACHER, Recipe, make_pair, solved
from storage.errors import OpdError, UserError

TINY = Recipe(hidden_size=16, intermediate_size=16, layers=1, heads=2, key_value_heads=1, steps=4,
              batch_size=8, warmup_steps=1, check_every=2, checked_problems=8, student_from=0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("pair") / "opd-models", []
    return make_pair(folder, seed=3, recipe=TINY, progress=lambda *call: seen.append(call)), folder, seen


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_student_is_an_early_state_of_the_teacher(made):
    pair, folder, seen = made
    assert pair.made and pair.student_step == 2 and seen == [("teacher", step, 4) for step in (1, 2, 3, 4)]
    teacher, student = weights(pair.teacher), weights(pair.student)
    assert teacher.keys() == student.keys()
    assert not torch.equal(teacher["model.norm.weight"], student["model.norm.weight"])
    assert sorted(path.name for path in folder.iterdir()) == [STUDENT, TEACHER]


def test_both_load_as_models_that_share_a_vocabulary_and_end_with_im_end(made):
    pair, *_ = made
    for folder in (pair.teacher, pair.student):
        facts = model_facts(Model(path=str(folder)))
        assert facts["eos_token_id"] == facts["generation_eos_token_id"] == 2
        assert load_model(folder).config.max_position_embeddings >= 2048
    agreement = vocabulary_agreement(load_tokenizer(pair.student), load_tokenizer(pair.teacher))
    assert agreement.shared == 1024 and not agreement.warnings


def test_a_pair_that_is_there_is_found_and_not_made_again(made):
    pair, folder, _ = made
    again = make_pair(folder, seed=3, recipe=TINY, progress=lambda *_: pytest.fail("trained again"))
    assert not again.made and again.as_dict() == {**pair.as_dict(), "made": False}


def test_another_folder_gets_the_same_weights(made, tmp_path):
    pair, *_ = made
    again = make_pair(tmp_path, seed=3, recipe=TINY)
    for one, other in ((pair.teacher, again.teacher), (pair.student, again.student)):
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_folder_without_its_partner_or_of_another_seed_is_made_again(made, tmp_path):
    pair = make_pair(tmp_path, seed=4, recipe=TINY)
    before = json.loads((pair.teacher / MARKER).read_text())
    assert make_pair(tmp_path, seed=3, recipe=TINY).made
    assert json.loads((pair.teacher / MARKER).read_text())["key"] != before["key"]
    (pair.teacher / MARKER).parent.rename(tmp_path / "elsewhere")
    assert make_pair(tmp_path, seed=3, recipe=TINY).made


def test_somebody_elses_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / TEACHER).mkdir()
    (tmp_path / TEACHER / "config.json").write_text("{}")
    with pytest.raises(UserError, match="move it away"):
        make_pair(tmp_path, recipe=TINY)
    assert [path.name for path in tmp_path.rglob("*")] == [TEACHER, "config.json"]


def test_a_teacher_that_never_learnt_is_an_error(tmp_path):
    with pytest.raises(OpdError, match="use another seed"):
        make_pair(tmp_path, recipe=Recipe(**{**TINY.__dict__, "student_from": 0.5}))
    assert not list(tmp_path.iterdir())


def test_solved_is_the_probability_of_the_whole_solution(made):
    pair, *_ = made
    model, tokenizer = load_model(pair.teacher, device="cpu"), load_tokenizer(pair.teacher)
    examples = [(tokenizer(problem.question)["input_ids"], tokenizer(problem.answer)["input_ids"])
                for problem in problems("arithmetic", 0, 3, "held_out")]
    expected = 0.0
    for prompt, response in examples:
        log_probs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        expected += sum(log_probs[len(prompt) + t - 1, token] for t, token in enumerate(response)).exp().item() / 3
    assert solved(model, examples) == pytest.approx(expected, rel=1e-4)
