"""Fixtures of these tests: those of the editor's tests."""

from tests.editor.conftest import editor_folder, make_base_model, make_sampler

__all__ = ["editor_folder", "make_base_model", "make_sampler"]
