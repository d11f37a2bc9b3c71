"""A user's own objective: from a file where opd runs, checked before it trains, hashed so that an edit is noticed."""

import hashlib

import pytest
import torch

from pipeline.config.load import apply_settings, validate
from pipeline.config.objectives import Custom, FullVocabulary, Gkd, SampledToken, TeacherTopKLsm
from pipeline.objectives import build
from pipeline.objectives.custom import source_sha256, whole_vocabulary_teacher
from storage.errors import ConfigError, UserError
from tests.objectives.dense_reference import cached, product_loss, states

SMALLEST = {"run": "a", "student": {"path": "s"}, "teacher": {"path": "t"},
            "prompts": {"source": {"type": "hub", "name": "openai/gsm8k"}}}
GOOD = '''
from dataclasses import dataclass

from pipeline.objectives.dense import Dense, WholeVocabulary
from pipeline.objectives.divergence import forward_kl
from pipeline.objectives.outside import tail_bucket
from pipeline.objectives.reduction import Reduced, Reduction, TokenMean
from pipeline.objectives.support import Union

LIST = [1]

def covering(k=None):
    return Dense("covering", Union(k), forward_kl, tail_bucket)

def whole(teacher="cache"):
    return WholeVocabulary("whole", forward_kl, teacher)

def fewer(*, without):
    made = type("Fewer", (), dict(name="f", needs_log_normaliser=False, age_cap=8, whole_vocabulary=False,
                                  support=len, loss=len, factors=len, units=len))()
    if without == "age_cap":
        made.age_cap = 0
    elif without == "name":
        made.name = 3
    else:
        setattr(made, without, None)
    return made

def nothing():
    pass

def broken():
    raise KeyError("of the user's own")

@dataclass(frozen=True)
class Nats(Reduced):
    scale: float
    name: str = "nats"
    needs_log_normaliser: bool = True
    age_cap: int = 2
    whole_vocabulary: bool = False
    reduction: Reduction = TokenMean()

    def support(self, batch):
        return batch.token_ids_N[:, None]

    def loss(self, batch, student):
        return self.scale * (student.lse_N - student.logits_NS[:, 0])
'''


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    """A folder that opd runs in, whose modules no other test has seen."""
    import sys

    before = set(sys.modules)
    (tmp_path / "own_losses.py").write_text(GOOD)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package/__init__.py").touch()
    (tmp_path / "own_package/inner.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def refusal(config) -> str:
    with pytest.raises(UserError) as caught:
        build(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("factory", ["own_losses:covering", "own_losses.covering", "own_package.inner.covering",
                                     "own_package.inner:covering"])
def test_a_factory_in_the_running_folder_makes_an_objective_that_trains(folder, factory):
    objective = build(Custom(factory=factory, options={"k": 3}), "sequence_mean")
    teacher, before, now = states(4, 30)
    logits = now.clone().requires_grad_()
    batch = cached(teacher, before, k=6)
    (objective.factors(batch) * product_loss(objective, batch, logits)).sum().backward()
    assert objective.name == "covering" and logits.grad.any() and objective.units(batch) == 1


def test_an_objective_that_shares_nothing_with_ours_but_the_interface_is_taken(folder):
    objective = build(Custom(factory="own_losses:Nats", options={"scale": 2.0}))
    teacher, before, now = states(4, 30)
    batch = cached(teacher, before, k=6)
    log_p = now.log_softmax(1)[torch.arange(4), batch.token_ids_N]
    torch.testing.assert_close(product_loss(objective, batch, now), -2 * log_p)


def test_a_type_with_a_dot_in_it_is_short_for_a_factory(folder):
    config = validate(apply_settings(SMALLEST, ["objective.type=own_losses.covering", "objective.options.k=3"]), "x")
    assert config.objective == Custom(factory="own_losses.covering", options={"k": 3})
    assert validate({**SMALLEST, "objective": {"type": "own_losses:covering"}}, "x").objective.factory
    with pytest.raises(ConfigError, match="objective.type = 'own_losses.covering' is not one of"):
        validate({**SMALLEST, "objective": {"type": "own_losses.covering", "factory": "other.one"}}, "x")
    again = validate(config.model_dump(mode="json"), "x")
    assert again.objective == config.objective and build(again.objective).name == "covering"


def test_the_folder_is_looked_in_last_and_not_left_on_the_path(folder, monkeypatch):
    import sys

    (folder / "colorsys.py").write_text("covering = None")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.syspath_prepend(folder / "own_package")
    path = list(sys.path)
    assert "has no 'covering'" in refusal(Custom(factory="colorsys:covering"))
    assert sys.path == path


def test_a_folder_that_is_on_the_path_keeps_its_place(folder, monkeypatch):
    import sys

    monkeypatch.syspath_prepend(folder)
    path = list(sys.path)
    assert build(Custom(factory="own_losses:covering")).name == "covering" and sys.path == path


@pytest.mark.parametrize(("factory", "options", "said"), [
    ("own_looses:covering", {}, "no module 'own_looses'"),
    ("own_package.iner:covering", {}, "no module 'own_package.iner'"),
    ("own_losses:coverin", {}, "module own_losses has no 'coverin'; it defines Nats, broken, covering"),
    ("own_losses:LIST", {}, "is a list, not a function or class"),
    ("own_losses:covering", {"l": 3}, "objective.options do not fit own_losses:covering"),
    ("own_losses:Nats", {}, "objective.options do not fit own_losses:Nats: missing a required argument: 'scale'"),
    ("own_losses:nothing", {}, "returned a NoneType that has no name of type str"),
    ("own_losses:fewer", {"without": "name"}, "has no name of type str"),
    ("own_losses:fewer", {"without": "needs_log_normaliser"}, "has no needs_log_normaliser of type bool"),
    ("own_losses:fewer", {"without": "whole_vocabulary"}, "has no whole_vocabulary of type bool"),
    ("own_losses:fewer", {"without": "age_cap"}, "has age_cap = 0, which would never let it train"),
    ("own_losses:fewer", {"without": "loss"}, "has no loss: see"),
    ("own_losses:fewer", {"without": "units"}, "has no units: see"),
    ("own_losses:whole", {"teacher": "nearby"}, "has no teacher = 'cache' or 'live'"),
    ("sampled_tokn.x", {}, "no module 'sampled_tokn'"),
    ("teacher_topk.lsm", {}, "did you mean objective.type = 'teacher_topk_lsm'?"),
])
def test_what_is_no_objective_is_one_line_that_says_why(folder, factory, options, said):
    assert said in refusal(Custom(factory=factory, options=options))


@pytest.mark.parametrize(("text", "said"), [
    ("import no_such_library_anywhere", "importing own_bad fails with ModuleNotFoundError: No module named"),
    ("from json import nothing_like_it", "importing own_bad fails with ImportError"),
    ("def f(:", "importing own_bad fails with SyntaxError")])
def test_a_module_that_cannot_be_imported_is_one_line(folder, text, said):
    (folder / "own_bad.py").write_text(text)
    assert said in refusal(Custom(factory="own_bad:f"))


def test_an_error_inside_the_users_own_code_is_theirs_to_see(folder):
    with pytest.raises(KeyError, match="of the user's own"):
        build(Custom(factory="own_losses:broken"))


@pytest.mark.parametrize("factory", ["", "covering", "own_losses:", ":covering", "own losses:f", "a:b:c", "a..b",
                                     "1a.b"])
def test_a_factory_that_names_nothing_is_refused_with_the_config(factory):
    with pytest.raises(ConfigError, match="does not name a module and something in it: write 'package.module:name'"):
        validate({**SMALLEST, "objective": {"type": "custom", "factory": factory}}, "x")


def test_an_objective_with_its_own_sums_is_refused_under_another_reduction_than_the_token_mean(folder):
    config = Custom(factory="own_losses:fewer", options={"without": "spare"})
    assert build(config).name == "f"
    with pytest.raises(UserError, match="train.reduction = 'sequence_mean', but the objective f has factors and units"):
        build(config, "sequence_mean")


def test_the_source_hash_is_that_of_the_file_and_changes_with_an_edit(folder):
    config = Custom(factory="own_package.inner:covering")
    file = folder / "own_package/inner.py"
    first = source_sha256(config)
    assert first == hashlib.sha256(file.read_bytes()).hexdigest()
    build(config)
    file.write_text(GOOD + "\n# edited\n")
    assert source_sha256(config) == hashlib.sha256(file.read_bytes()).hexdigest() != first
    assert source_sha256(TeacherTopKLsm()) is None


@pytest.mark.parametrize(("factory", "said"), [
    ("own_looses:covering", "no module 'own_looses'"), ("own_package.iner:covering", "no module 'own_package.iner'"),
    ("own_looses.inner:covering", "no module 'own_looses.inner'"),
    ("time:time", "module time has no source file")])
def test_a_module_without_a_source_has_no_hash(folder, factory, said):
    with pytest.raises(UserError, match=said):
        source_sha256(Custom(factory=factory))


def test_an_objective_says_what_it_needs_besides_the_lists(folder):
    custom = lambda name, **options: Custom(factory=f"own_losses:{name}", options=options)
    source = whole_vocabulary_teacher
    assert [source(each) for each in (TeacherTopKLsm(), SampledToken(baseline="kl"), Gkd(), custom("covering"))] == [
        None] * 4
    assert source(FullVocabulary()) == source(Gkd(support="full")) == source(custom("whole")) == "cache"
    assert source(FullVocabulary(teacher="live")) == source(custom("whole", teacher="live")) == "live"
