"""The fine-tuning loop learns, repeats itself, and looks at response tokens only."""

import pytest
import torch

from pipeline.train.sft import _batches, _loss, rate, train_sft
from tests.train.tables import tiny_model

EXAMPLES = [([1 + i % 9, 11, 2 + i % 7], [(3 + i * 8) % 9, 20] + [21] * (i % 3)) for i in range(70)]


def run(**changes):
    model = tiny_model(3)
    options = {"steps": 30, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 3, "seed": 1, **changes}
    return train_sft(model, EXAMPLES, **options), model


def test_the_loss_falls():
    losses, _ = run()
    assert len(losses) == 30 and losses[-1] < 0.5 * losses[0]


def test_two_runs_give_the_same_losses_and_weights():
    (first, one), (second, other) = run(), run()
    assert first == second
    assert all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())
    assert run(seed=2)[0] != first


def test_the_loss_is_the_mean_over_response_tokens_of_the_whole_batch():
    model, batch = tiny_model(3), EXAMPLES[:5]
    expected = []
    for prompt, response in batch:
        log_probs = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        expected += [-log_probs[len(prompt) + t - 1, token] for t, token in enumerate(response)]
    assert _loss(model, batch).item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_an_epoch_of_batches_holds_every_example_once():
    batches = _batches(EXAMPLES, 8, seed=0)
    epoch = [next(batches) for _ in range(9)]
    assert sorted(index for batch in epoch for index in batch) == list(range(70))


def test_schedules_warm_up_and_come_down():
    assert [rate(step, 100, 4, "constant") for step in (1, 2, 4, 100)] == [0.25, 0.5, 1, 1]
    assert rate(100, 100, 4, "cosine") == pytest.approx(0.1) and rate(4, 100, 4, "cosine") == pytest.approx(1)
    assert rate(70, 100, 4, "trapezoid") == 1 and rate(100, 100, 4, "trapezoid") == pytest.approx(1 / 30)


def test_progress_counts_steps_and_empty_examples_are_refused():
    seen = []
    run(steps=3, progress=lambda *call: seen.append(call))
    assert seen == [("sft", 1, 3), ("sft", 2, 3), ("sft", 3, 3)]
    with pytest.raises(ValueError, match="empty prompt or response"):
        train_sft(tiny_model(3), [([1], [])], steps=1, batch_size=1, learning_rate=1e-3)
