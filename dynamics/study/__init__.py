"""Floor 7, questions: a run as a value, a study as a set of runs, the execution of what is missing, and its results."""
