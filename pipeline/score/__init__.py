"""One pass over the rollouts: teacher and behaviour student, top-K both ways, exact gathers across."""
