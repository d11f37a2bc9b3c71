"""The quickstart's tokenizer: byte-level BPE of 1024 ids, each digit a token, with a chat template.

It splits text the way Qwen2's does and can encode any UTF-8. The context window and this vocabulary are enough for
the prompts of GSM8K (at most 2048 tokens).
"""

from itertools import chain

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.prompts.generated import problems
from pipeline.quickstart.corpus import lines

VOCABULARY = 1024
PROBLEMS = 2000
"""Generated problems that the merges are learnt from."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Learn the merges; the same ids on every machine."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    stories = chain.from_iterable((p.question, p.solution) for p in problems("arithmetic", 0, PROBLEMS, "train"))
    core.train_from_iterator(chain(stories, lines()), trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   chat_template=TEMPLATE)
