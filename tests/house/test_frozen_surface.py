"""The config's keys and the command line are public: changing them is done on purpose, here too."""

import argparse

from flows.cli import parser
from pipeline.config.load import section_models
from pipeline.config.model import RunConfig

KEYS = """
run store rounds seed threads student.path student.revision student.dtype student.attention student.trust_remote_code
teacher.path teacher.revision teacher.dtype teacher.attention teacher.trust_remote_code prompts.source<hub>.name
prompts.source<hub>.subset prompts.source<hub>.split prompts.source<hub>.revision prompts.source<hub>.question
prompts.source<hub>.answer prompts.source<hub>.solution prompts.source<hub>.limit prompts.source<file>.path
prompts.source<file>.name prompts.source<file>.question prompts.source<file>.answer prompts.source<file>.solution
prompts.source<file>.limit prompts.source<generated>.generator prompts.source<generated>.problems
prompts.source<generated>.seed prompts.source<generated>.split prompts.task prompts.template prompts.system
prompts.per_round prompts.per_shard prompts.max_prompt_tokens rollout.engine<transformers>.batch_size
rollout.engine<vllm>.max_num_seqs rollout.engine<vllm>.gpu_memory_utilization rollout.engine<vllm>.cpu_kv_cache_gb
rollout.engine<vllm>.tensor_parallel rollout.engine<vllm>.data_parallel rollout.engine<vllm>.max_model_len
rollout.engine<vllm>.enforce_eager rollout.engine<vllm>.probe_rollouts rollout.engine<vllm_server>.url
rollout.engine<vllm_server>.model rollout.engine<vllm_server>.api_key_env rollout.engine<vllm_server>.concurrency
rollout.engine<vllm_server>.timeout_s rollout.engine<vllm_server>.retries rollout.engine<vllm_server>.reload
rollout.engine<vllm_server>.checkpoint_path rollout.samples rollout.temperature rollout.top_p rollout.max_new_tokens
score.engine<vllm>.max_num_seqs score.engine<vllm>.gpu_memory_utilization score.engine<vllm>.cpu_kv_cache_gb
score.engine<vllm>.tensor_parallel score.engine<vllm>.max_model_len score.engine<vllm>.enforce_eager
score.engine<vllm_server>.url score.engine<vllm_server>.model score.engine<vllm_server>.api_key_env
score.engine<vllm_server>.concurrency score.engine<vllm_server>.timeout_s score.engine<vllm_server>.retries
score.teacher_top_k score.student_top_k score.student_log_probs_at_teacher_topk score.grid score.batch_tokens
score.head_rows score.reuse score.teacher_hidden_states mask<special_tokens>.tokens mask<special_tokens>.occurrences
mask<detector>.max_log_ratio mask<detector>.min_student_prob mask<detector>.min_count mask<sql>.file
objective<teacher_topk_lsm>.k objective<student_topk>.form objective<student_topk>.clip objective<student_topk>.k
objective<union_topk>.k objective<tail_bucket_topk>.k objective<forward_kl_topk>.k objective<gkd>.k
objective<gkd>.beta objective<gkd>.support objective<gkd>.teacher objective<skewed_topk>.k
objective<skewed_topk>.alpha objective<stop_gradient_topk>.support objective<stop_gradient_topk>.k
objective<truncated_topk>.k objective<full_vocabulary>.teacher objective<sampled_token>.gamma
objective<sampled_token>.advantage objective<sampled_token>.ratio objective<sampled_token>.clip_low
objective<sampled_token>.clip_high objective<sampled_token>.ratio_cap objective<sampled_token>.baseline
objective<sampled_token>.advantage_clip objective<sampled_token_masked>.gamma
objective<sampled_token_masked>.advantage objective<sampled_token_masked>.ratio
objective<sampled_token_masked>.clip_low objective<sampled_token_masked>.clip_high
objective<sampled_token_masked>.ratio_cap objective<sampled_token_masked>.baseline
objective<sampled_token_masked>.advantage_clip objective<lightning>.clip objective<dense>.support
objective<dense>.divergence objective<dense>.outside objective<dense>.stop_gradient objective<dense>.k
objective<dense>.beta objective<dense>.alpha objective<dense>.teacher objective<custom>.factory
objective<custom>.options train.learning_rate train.warmup_steps train.rollouts_per_step train.epochs
train.micro_batch_tokens train.beta1 train.beta2 train.eps train.weight_decay train.optimizer train.max_grad_norm
train.precision train.gradient_checkpointing train.packing train.compile train.ranks train.lora.rank train.lora.alpha
train.lora.target_modules train.reduction train.denominator train.age_cap train.drift_fuse continuation.depths
continuation.prompts continuation.rollouts continuation.samples continuation.every continuation.temperature
continuation.top_p continuation.max_new_tokens evaluation.benchmark.name evaluation.benchmark.source<hub>.name
evaluation.benchmark.source<hub>.subset evaluation.benchmark.source<hub>.split
evaluation.benchmark.source<hub>.revision evaluation.benchmark.source<hub>.question
evaluation.benchmark.source<hub>.answer evaluation.benchmark.source<hub>.solution
evaluation.benchmark.source<hub>.limit evaluation.benchmark.source<file>.path evaluation.benchmark.source<file>.name
evaluation.benchmark.source<file>.question evaluation.benchmark.source<file>.answer
evaluation.benchmark.source<file>.solution evaluation.benchmark.source<file>.limit
evaluation.benchmark.source<generated>.generator evaluation.benchmark.source<generated>.problems
evaluation.benchmark.source<generated>.seed evaluation.benchmark.source<generated>.split evaluation.benchmark.template
evaluation.benchmark.system evaluation.benchmark.samples evaluation.every evaluation.teacher evaluation.seed
evaluation.temperature evaluation.top_p evaluation.max_new_tokens evaluation.per_shard evaluation.timeout_s
tracker<tensorboard>.folder tracker<wandb>.project tracker<wandb>.entity tracker<wandb>.mode tracker<wandb>.folder
tracker<mlflow>.uri tracker<mlflow>.experiment tracker<trackio>.project tracker<trackio>.folder workers.processes
workers.stream workers.pool workers.pool_jobs workers.lease_s
"""

STAGE = "--json --processes --round --run --shard --store"
BRANCH = "--as --json --round --set --store run_id"
COMMANDS = {
    "quickstart": "--json --report --set config", "init": "--prompts --student --teacher file",
    "doctor": "--fix --json --store",
    "serve": "--cron --name --set --timezone config",
    "run": "--dry-run --json --leave-training --no-prefect --set config", "start": "--json --set config",
    "continue": "--json --no-prefect --rounds --store run_id",
    "replay": f"{BRANCH} --check --k --mask --no-evaluation --out --seed --seeds --sweep", "rescore": BRANCH,
    "diff": "--all --exit-code --json --store a b",
    "prompts": STAGE, "rollout": STAGE, "score": STAGE, "hidden": STAGE, "continuation": STAGE, "mask": STAGE,
    "train": STAGE,
    "evaluate": f"{STAGE} --model --out --set config",
    "sql": "--committed --describe --force --format --json --list --out --param --run --store query",
    "report": "--json --out --round --store run_id",
    "track": "--json --set --store --to run_id",
    "catalog": "--committed --force --json --run --store file", "verify": "--json --run --store",
    "lineage": "--json --store checkpoint",
}


def keys(model, prefix: str = ""):
    """Dotted keys of a section; a union's member as <type>."""
    for name, field in model.model_fields.items():
        options = section_models(field.annotation)
        if not options and name != "type":
            yield prefix + name
        for option in options:
            tag = f"<{option.model_fields['type'].default}>" if "type" in option.model_fields else ""
            yield from keys(option, f"{prefix}{name}{tag}.")


def test_the_configs_keys_are_these():
    assert list(keys(RunConfig)) == KEYS.split()


def test_the_commands_and_their_options_are_these():
    (verbs,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    found = {name: sorted((action.option_strings or [action.dest])[-1] for action in verb._actions)
             for name, verb in verbs.choices.items()}
    assert found == {name: sorted(["--debug", "--help", *options.split()]) for name, options in COMMANDS.items()}
