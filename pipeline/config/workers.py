"""[workers]: on how many devices and machines a run is played. Not part of the run's identity, and not recorded in
run.json: the same run may be played by one worker today and by eight tomorrow."""

from pipeline.config.section import Section


class Workers(Section):
    """Who computes the shards of a stage."""
