"""The agents that ask for instructions, one per task: what they say to a llm, and how they read what it answers."""
