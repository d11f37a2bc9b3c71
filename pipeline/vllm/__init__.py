"""Everything that rollouts and teachers share of vLLM: its processes on this machine, and its servers elsewhere.

    start, messages   a process with an engine in it, and what is said through its socket
    reload            new weights for an engine that lives
    checks            version and devices, before anything is started
    client            a server's HTTP interface

The package vllm itself is imported in engines' own processes alone (`reload` there too).
"""
