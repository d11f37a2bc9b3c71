"""Where other libraries compute the same thing the numbers agree; where they differ, the test says why.

Their outputs were written by peers/generate_*.py, on inputs that lie in the same files. Peers in float64 agree to
1e-10; in float32, on logits that float32 holds exactly, to 5e-6 (16 ids, losses below 6 nats).

Legend: N positions, V vocabulary.
"""

from dataclasses import replace

import pytest
import torch

from tests.objectives.oracle import closed_form
from tests.objectives.oracle.dense import support_ids
from tests.objectives.oracle.states import States, log_softmax, ranked
from tests.objectives.peers.fixture import STUDENT_K, TEACHER_K, read
from tests.objectives.test_oracle import product

TOLERANCE = {"float64": 1e-10, "float32": 5e-6}


def states_of(document: dict) -> States:
    tensors = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in document["inputs"].items()}
    n = len(tensors["student"])
    return States(tensors["student"], tensors["behaviour"], tensors["teacher"], torch.zeros(n, dtype=torch.long),
                  torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64),
                  torch.zeros(n, dtype=torch.long), torch.arange(n), TEACHER_K, STUDENT_K)


def ours(states: States, **config) -> tuple[torch.Tensor, torch.Tensor]:
    """loss_N and its gradient."""
    k = config.get("k") or 0
    wide = replace(states, stored_teacher=max(k, TEACHER_K), stored_student=max(k, STUDENT_K))
    return product(wide, config)[2:]


def theirs(case: dict) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(case["loss"], dtype=torch.float64), torch.tensor(case["gradient"], dtype=torch.float64)


def only(document: dict, **wanted) -> tuple[torch.Tensor, torch.Tensor]:
    [case] = [case for case in document["cases"] if wanted.items() <= case.items()]
    return theirs(case)


def assert_same(mine, peer, tolerance):
    for a, b in zip(mine, peer, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_trl_and_we_mean_the_same_beta(beta):
    """Ours and TRL's: beta is the teacher's share of the mixture, 0 the forward and 1 the reverse KL."""
    document = read("trl.json")
    states = states_of(document)
    everything = states.student_NV.shape[1]
    assert_same(ours(states, type="gkd", beta=beta, k=everything), only(document, name="full", beta=beta), 1e-10)
    assert_same(ours(states, type="gkd", beta=beta, k=TEACHER_K), only(document, name="tail bucket", beta=beta), 1e-10)


def test_trls_tail_bucket_invents_mass_where_there_is_none():
    """It caps the list's mass at 1 - 1e-7: with K = V a bucket of 1e-7 on both sides, whose gradient is cut."""
    document = read("trl.json")
    states = states_of(document)
    everything = states.student_NV.shape[1]
    peer_loss, peer_gradient = only(document, name="tail bucket, K = V", k=everything)
    loss, gradient = ours(states, type="forward_kl_topk", k=everything)
    torch.testing.assert_close(loss, peer_loss, rtol=0, atol=1e-7)
    torch.testing.assert_close(gradient, peer_gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("function", ["kernel", "chunked"])
def test_ligers_jsd_is_ours(function, beta):
    document = read("liger.json")
    states = states_of(document)
    mine = ours(states, type="gkd", beta=beta, k=states.student_NV.shape[1])
    assert_same(mine, only(document, name=function, beta=beta), TOLERANCE["float32"])


@pytest.mark.parametrize(("kl_type", "divergence"), [("reverse", "reverse_kl"), ("forward", "forward_kl")])
def test_nemo_rl_renormalises_both_sides_as_lsm_does(kl_type, divergence):
    document = read("nemo_rl.json")
    states = states_of(document)
    mine = ours(states, type="dense", divergence=divergence, outside="renormalise", k=TEACHER_K)
    assert_same(mine, only(document, name="renormalised", kl_type=kl_type), TOLERANCE["float32"])
    if kl_type == "reverse":
        assert_same(ours(states, type="teacher_topk_lsm", k=TEACHER_K), mine, 1e-12)


def test_nemo_rls_mixed_divergence_is_a_mean_of_two_and_not_a_jsd():
    document = read("nemo_rl.json")
    states = states_of(document)
    halves = [ours(states, type="dense", divergence=divergence, outside="renormalise", k=TEACHER_K)
              for divergence in ("forward_kl", "reverse_kl")]
    mixed = only(document, name="renormalised", kl_type="mixed")
    assert_same([(a + b) / 2 for a, b in zip(*halves)], mixed, TOLERANCE["float32"])
    jsd_N, _ = ours(states, type="dense", divergence="jsd", outside="renormalise", k=TEACHER_K, beta=0.5)
    assert (jsd_N < 0.5 * mixed[0]).all()


def test_nemo_rls_zero_outside_charges_100_nats_a_unit_of_mass_where_our_tail_asks_the_teacher():
    """Its teacher is q^ on the list and e^-100 off it, so it also pushes out what the teacher does hold there."""
    document = read("nemo_rl.json")
    states = states_of(document)
    peer_N, peer_gradient_NV = only(document, name="zero_outside_topk", kl_type="reverse")
    log_p_NV = log_softmax(states.student_NV)
    floor_NV = torch.full_like(log_p_NV, -100.0)
    ids_NK = ranked(states.teacher_NV, TEACHER_K)
    listed_NK = states.teacher_NV.gather(1, ids_NK).log_softmax(-1)
    floor_NV.scatter_(1, ids_NK, listed_NK)
    torch.testing.assert_close((log_p_NV.exp() * (log_p_NV - floor_NV)).sum(1), peer_N, rtol=5e-6, atol=5e-6)
    tail_N, tail_NV = ours(states, type="tail_bucket_topk", k=TEACHER_K)
    outside_NV = floor_NV == -100.0
    assert (peer_N > 10 * tail_N).all()
    assert ((peer_gradient_NV * outside_NV).sum(1) > 10 * (tail_NV * outside_NV).sum(1).abs()).all()


def test_nemo_rls_forward_zero_outside_teaches_the_student_to_put_all_mass_on_the_list():
    """q^ against the raw p: our forward KL over V if the teacher had nothing off its list."""
    document = read("nemo_rl.json")
    states = states_of(document)
    outside_NV = torch.ones_like(states.teacher_NV, dtype=torch.bool)
    outside_NV.scatter_(1, ranked(states.teacher_NV, TEACHER_K), False)
    nothing_outside = replace(states, teacher_NV=states.teacher_NV.masked_fill(outside_NV, -torch.inf))
    mine = ours(nothing_outside, type="forward_kl_topk", k=TEACHER_K)
    assert_same(mine, only(document, name="zero_outside_topk", kl_type="forward"), TOLERANCE["float32"])


def test_verls_topk_is_our_truncated_forward_kl():
    document = read("verl.json")
    states = states_of(document)
    mine = ours(states, type="dense", divergence="forward_kl", outside="truncate", k=TEACHER_K)
    assert_same(mine, only(document, name="truncated"), TOLERANCE["float32"])


def test_verls_clamp_silences_the_positions_where_the_raw_sum_is_negative():
    """A raw sum is negative where the student holds more of the list than the teacher; max(., 0) has no gradient there.
    With a tail bucket the same position has a positive loss and a gradient."""
    document = read("verl.json")
    states = states_of(document)
    (raw_N, raw_NV), (clamped_N, clamped_NV) = only(document, name="truncated"), only(document, name="clamped")
    silent_N = raw_N < 0
    assert silent_N.any() and (~silent_N).any()
    assert (raw_NV[silent_N].abs().sum(1) > 0.01).all()
    assert (clamped_N[silent_N] == 0).all() and (clamped_NV[silent_N] == 0).all()
    assert_same((clamped_N[~silent_N], clamped_NV[~silent_N]), (raw_N[~silent_N], raw_NV[~silent_N]), 1e-12)
    loss_N, gradient_NV = ours(states, type="forward_kl_topk", k=TEACHER_K)
    assert (loss_N[silent_N] > 0.01).all() and (gradient_NV[silent_N].abs().sum(1) > 0.01).all()


def test_miles_advantage_is_a_number_of_the_state_and_teaches_nothing_on_average():
    """Weights renormalised on S, log-ratios raw: our loss plus log(P_S / Q_S). Subtracted from the advantage of
    whatever was sampled, its expected gradient is 0; that of the divergence as a loss is not (miles issue 2362)."""
    document = read("miles.json")
    states = states_of(document)
    loss_N, gradient_NV = ours(states, type="student_topk", k=STUDENT_K)
    ids_Nk = ranked(states.behaviour_NV, STUDENT_K)
    mass = [log_softmax(logits_NV).gather(1, ids_Nk).logsumexp(1)
            for logits_NV in (states.student_NV, states.teacher_NV)]
    value_N, _ = only(document, name="reverse KL")
    torch.testing.assert_close(loss_N + mass[0] - mass[1], value_N, rtol=5e-6, atol=5e-6)
    _, expected_NV = only(document, name="expected policy gradient")
    assert expected_NV.abs().max() < 1e-6
    assert (gradient_NV.abs().max(1).values > 0.01).all()


@pytest.mark.parametrize("k", [STUDENT_K, 1])
def test_rethinking_opds_code_is_our_policy_gradient_over_the_students_list(k):
    """No ratio of these inputs exceeds 3, where its dual clip begins. With k = 1 it still has a gradient."""
    document = read("rethinking_opd.json")
    states = states_of(document)
    mine = ours(states, type="student_topk", form="policy_gradient", k=k, clip=0.2)
    assert_same(mine, only(document, name="stale", k=k), 1e-10)


@pytest.mark.parametrize(("strategy", "kind"), [("only_stu", "student_topk"), ("union", "union_topk"),
                                                ("intersection", "overlap_only")])
def test_rethinking_opds_gradient_is_that_of_the_renormalised_loss_and_a_pull_on_the_lists_mass(strategy, kind):
    """On policy. Its weights are renormalised on S and its log-ratios are not, with L = sum of w (log p - log q):
    grad = grad KL(p^ || q^) + L grad log P_S."""
    document = read("rethinking_opd.json")
    states = states_of(document)
    states = replace(states, student_NV=states.behaviour_NV, stored_teacher=STUDENT_K, stored_student=STUDENT_K)
    _, _, _, renormalised_NV = product(states, {"type": kind})
    peer_N, peer_NV = only(document, name="on policy", strategy=strategy)
    log_p_NV = log_softmax(states.student_NV)
    for n in range(len(states)):
        ids = support_ids(states, n, {"only_stu": "student_top_k"}.get(strategy, strategy), None)
        pull_V = closed_form.mass(log_p_NV[n].exp(), torch.isin(torch.arange(log_p_NV.shape[1]), torch.tensor(ids)))
        expected_V = renormalised_NV[n] + peer_N[n] * pull_V / log_p_NV[n, ids].exp().sum()
        torch.testing.assert_close(peer_NV[n], expected_V, rtol=1e-10, atol=1e-10)


def test_rethinking_opds_non_overlap_is_raw():
    """Its symmetric difference alone is not renormalised: on policy the gradient of sum p sg(log p / q) over it, so
    dense + truncate + stop_gradient, and not non_overlap_only."""
    document = read("rethinking_opd.json")
    states = states_of(document)
    states = replace(states, student_NV=states.behaviour_NV, stored_teacher=STUDENT_K, stored_student=STUDENT_K)
    raw = {"type": "dense", "support": "symmetric_difference", "divergence": "reverse_kl", "outside": "truncate",
           "stop_gradient": True}
    _, peer_NV = only(document, name="on policy", strategy="union-intersection")
    torch.testing.assert_close(product(states, raw)[3], peer_NV, rtol=1e-10, atol=1e-10)
    assert (product(states, {"type": "non_overlap_only"})[3] - peer_NV).abs().max() > 0.01
