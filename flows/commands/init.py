"""`opd init [FILE]`: write a config with every key, its default and what it means."""

from pathlib import Path

from flows.commands.options import verb
from storage.errors import UserError


def add(verbs) -> None:
    parser = verb(verbs, "init", run, "Write a config with every key, its default and what it means.")
    parser.add_argument("file", type=Path, nargs="?", default=Path("opd.toml"), help="default: %(default)s")
    parser.add_argument("--student", default="Qwen/Qwen2.5-1.5B-Instruct", help="folder or hub name")
    parser.add_argument("--teacher", default="Qwen/Qwen2.5-7B-Instruct", help="folder or hub name")
    parser.add_argument("--prompts", default="openai/gsm8k", help="data set by its hub name")


def run(arguments) -> int:
    from pipeline.config.load import validate
    from pipeline.config.template import to_toml

    source = {"type": "hub", "name": arguments.prompts}
    held_out = {"name": "math-500", "source": {"type": "hub", "name": "HuggingFaceH4/MATH-500", "split": "test",
                                               "question": "problem"}}
    if arguments.prompts == "openai/gsm8k":
        source["subset"] = "main"
        held_out = {"name": "gsm8k-test", "source": {**source, "split": "test"}}
    config = validate({"run": "first-run", "student": {"path": arguments.student},
                       "teacher": {"path": arguments.teacher}, "prompts": {"source": source},
                       "evaluation": {"benchmark": [held_out]}}, where="init")
    text = "# Play it: opd run " + arguments.file.name + "\n" + to_toml(config.model_dump(mode="json"), comments=True)
    try:
        with open(arguments.file, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"init: {arguments.file} exists already; name another file") from None
    except OSError as error:
        raise UserError(f"init: {arguments.file} cannot be written ({error.strerror}); name another file") from None
    print(f"wrote {arguments.file}; look at it, then: opd run {arguments.file} --dry-run")
    return 0
