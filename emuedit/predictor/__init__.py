"""The task predictor: a T5 and a linear classifier of letter n-grams, new tasks, refusals, reassignment of tasks."""
