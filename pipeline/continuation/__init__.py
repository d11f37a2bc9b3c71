"""Continuations: where a model gets to from prefixes that the student wrote, and whether it still arrives."""
