"""Models: where they come from, what they are, and the parts of them that the stages use.

Importing this package imports neither torch nor transformers.
"""

from pipeline.models.facts import model_facts, pinned
from pipeline.models.files import config_hash, fingerprint, resolve
from pipeline.models.head import Head, check_head, output_head, trunk
from pipeline.models.loading import device, load_model, load_tokenizer
from pipeline.models.vocabulary import Agreement, template_hash, tokenizer_hash, vocabulary_agreement

__all__ = ["Agreement", "Head", "check_head", "config_hash", "device", "fingerprint", "load_model", "load_tokenizer",
           "model_facts", "output_head", "pinned", "resolve", "template_hash", "tokenizer_hash", "trunk",
           "vocabulary_agreement"]
