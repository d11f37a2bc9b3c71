"""New weights in a running vLLM: its own `reload_weights`, and what that forgets.

vLLM 0.32 on a CPU computes with a packed copy of every matrix. A reload repacks each layer that got weights, and a
head that is tied to the embedding gets none: it would go on with the old round's logits. (On a GPU the two share one
tensor.) The class is mixed into vLLM's worker, so that `collective_rpc("take_weights")` reaches every one.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.weights import weight_files


class TakesWeights:
    """Of a vLLM worker."""

    def take_weights(self, folder: str) -> None:
        """Load the weights in `folder` in place of the present ones, which have the same names and shapes."""
        with model_alone(folder) as alone:
            self.reload_weights(weights_path=alone)
        for layer in self.get_model().modules():
            if hasattr(layer, "cpu_linear") and _is_embedding(layer):
                layer.quant_method.process_weights_after_loading(layer)


@contextmanager
def model_alone(folder: str) -> Iterator[str]:
    """A folder with links to what the model in `folder` is loaded from, and to nothing else: vLLM loads every
    *.safetensors it finds, a checkpoint's optimizer state too. Gone once the weights are loaded."""
    weights = weight_files(Path(folder))
    others = [each for each in Path(folder).iterdir() if each.suffix != ".safetensors" and each.is_file()]
    with tempfile.TemporaryDirectory(prefix="opd-vllm-") as alone:
        for file in weights + others:
            (Path(alone) / file.name).symlink_to(file.resolve())
        yield alone


def _is_embedding(layer) -> bool:
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding  # ParallelLMHead is one

    return isinstance(layer, VocabParallelEmbedding)
