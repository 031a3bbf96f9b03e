"""Task prompts: how an LLM is asked for edit instructions of each task, and how its answers are parsed."""
