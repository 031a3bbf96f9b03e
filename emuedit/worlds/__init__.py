"""Worlds other than the toy world: `emuedit init` writes the params and the deps of a world of photographs."""
