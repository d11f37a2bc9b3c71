"""The report of a run or a round, section by section."""

from pipeline.report import cost, depth, distance, health, learning, overview, reading, tasks
from pipeline.report.asked import Source
from pipeline.report.document import Report, Section


def build(source: Source) -> Report:
    """Everything that the HTML and the markdown show."""
    whole = source.number is None
    sections: list[Section | None] = [
        overview.rounds_section(source) if whole else overview.numbers_section(source),
        health.health_section(source), learning.accuracy_section(source), learning.training_section(source),
        distance.distance_section(source), tasks.tasks_section(source), depth.depth_section(source),
        cost.lengths_section(source), cost.masks_section(source), cost.timings_section(source),
        reading.worst_section(source), reading.inspector_section(source), reading.answers_section(source)]
    state, in_progress = overview.state(source)
    subject = "Run report" if whole else f"Report of round {source.number}"
    title = source.run if whole else f"{source.run}, round {source.number}"
    return Report(title, subject, state, in_progress, overview.facts(source), overview.tiles(source),
                  [section for section in sections if section], source.command("rounds"))
