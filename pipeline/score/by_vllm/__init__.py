"""A teacher that vLLM runs: `scores` is what the score stage calls.

    source      either of the next two: what the stage asks of it, and the check that order changes nothing
    offline     vLLM on this machine; `process` is the process that holds it
    server      vLLM behind a URL
    columns     the teacher's columns from what vLLM says
    unknown     the columns that it does not say: null
"""
