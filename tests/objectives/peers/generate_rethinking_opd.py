"""Runs the reward and the policy loss of Rethinking OPD's own code on the top-k of either model: rethinking_opd.json.

    python -m tests.objectives.peers.generate_rethinking_opd CHECKOUT      (github.com/thunlp/OPD)

A name that its fork of verl imports from transformers 4 is set to its successor first; the actor is built without a
model, which the reward does not touch. Advantages are the rewards: its recipe has no discount and no baseline.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.objectives.peers.fixture import STUDENT_K, case, commit, inputs, top_k, write

CLIP = 0.2


def reward_NS(strategy: str, behaviour_NV: torch.Tensor, teacher_NV: torch.Tensor, k: int) -> tuple:
    """The reward of every id of the list(s), and the ids."""
    from verl import DataProto
    from verl.workers.actor import dp_actor

    dp_actor.get_device_id = lambda: "cpu"
    p0_NV, q_NV = behaviour_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    student_ids, teacher_ids = top_k(behaviour_NV, k), top_k(teacher_NV, k)
    in_teacher = (student_ids[:, :, None] == teacher_ids[:, None, :]).any(-1)
    in_student = (teacher_ids[:, :, None] == student_ids[:, None, :]).any(-1)
    tensors = {"student_top_k_ids": student_ids, "student_top_k_log_probs": p0_NV.gather(1, student_ids),
               "teacher_on_student_log_probs": q_NV.gather(1, student_ids), "teacher_top_k_ids": teacher_ids,
               "teacher_top_k_log_probs": q_NV.gather(1, teacher_ids), "overlap_mask": in_teacher,
               "teacher_in_student_mask": in_student}
    actor = dp_actor.DataParallelPPOActor.__new__(dp_actor.DataParallelPPOActor)
    actor.actor_module, actor.ulysses_sequence_parallel_size = torch.nn.Identity(), 1
    actor._forward_micro_batch = lambda *args, **keys: (None, None, None, p0_NV.gather(1, teacher_ids)[None])
    meta = {"log_prob_top_k": k, "top_k_strategy": strategy, "micro_batch_size": 1, "temperature": 1.0,
            "use_dynamic_bsz": False}
    data = {name: tensor[None] for name, tensor in tensors.items()}
    unused = {name: torch.zeros(1, 1) for name in ("responses", "input_ids", "attention_mask", "position_ids")}
    scored = actor.compute_distillation_reward(DataProto.from_dict({**data, **unused}, meta_info=meta))
    both = torch.cat([student_ids, teacher_ids], dim=1)
    return scored.batch["rm_scores"][0], both if strategy.startswith("union") else student_ids


def policy_loss_N(student_NV: torch.Tensor, behaviour_NV: torch.Tensor, teacher_NV: torch.Tensor, strategy: str,
                  k: int) -> torch.Tensor:
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla

    advantage_NS, ids_NS = reward_NS(strategy, behaviour_NV, teacher_NV, k)
    config = SimpleNamespace(clip_ratio=CLIP, clip_ratio_low=CLIP, clip_ratio_high=CLIP, get=lambda key, value: value)
    p_NS, p0_NS = (logits_NV.log_softmax(-1).gather(1, ids_NS) for logits_NV in (student_NV, behaviour_NV))
    return torch.stack([compute_policy_loss_vanilla(p0_NS[n][None, None], p_NS[n][None, None],
                                                    advantage_NS[n][None, None], torch.ones(1, 1), "token-mean",
                                                    config)[0] for n in range(len(student_NV))])


def main(checkout: Path) -> None:
    import transformers

    transformers.AutoModelForVision2Seq = transformers.AutoModelForImageTextToText
    sys.path.insert(0, str(checkout / "verl"))
    tensors = inputs(seed=6, drift=0.5)
    student_NV, behaviour_NV, teacher_NV = tensors["student"].requires_grad_(), tensors["behaviour"], tensors["teacher"]
    cases = []
    for k in (STUDENT_K, 1):
        loss_N = policy_loss_N(student_NV, behaviour_NV, teacher_NV, "only_stu", k)
        cases.append(case("stale", loss_N, student_NV, k=k, clip=CLIP, strategy="only_stu"))
    student_NV = behaviour_NV.clone().requires_grad_()
    for strategy in ("only_stu", "intersection", "union", "union-intersection"):
        loss_N = policy_loss_N(student_NV, behaviour_NV, teacher_NV, strategy, STUDENT_K)
        cases.append(case("on policy", loss_N, student_NV, k=STUDENT_K, clip=CLIP, strategy=strategy))
    write("rethinking_opd.json", peer="thunlp/OPD", version=commit(checkout), dtype="float64", tensors=tensors,
          cases=cases, function="verl.workers.actor.dp_actor.DataParallelPPOActor.compute_distillation_reward; "
                                "verl.trainer.ppo.core_algos.compute_policy_loss_vanilla",
          command="python -m tests.objectives.peers.generate_rethinking_opd CHECKOUT")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
