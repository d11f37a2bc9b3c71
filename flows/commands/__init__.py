"""The verbs of `opd`, one module each."""
