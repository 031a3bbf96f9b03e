"""Adapters for external networks, one module per network, each with a small interface.

Every network is wrapped in one class with one or two methods. Every module has one `load` that takes a local folder or
a hub id and returns that class; toy models and real models take the same code path.

Images are `float32 [B, 3, H, W] in [-1, 1]`; `image_tensors` converts from and to `uint8`.
Heavy libraries are imported when a model is loaded, not before.
"""
