"""Replay: what would another objective, mask, K or teacher have made of a round that lies in the store?

request.py says what may be changed, branch.py makes a run that shares the round's files and does the rest anew,
check.py repeats a round as it was and compares every byte, sweep.py plays many branches of one round.
"""
