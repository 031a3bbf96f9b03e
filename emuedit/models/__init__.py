"""Adapters for external networks, one module per network, each with a small interface.

Every network is wrapped in one class with one or two methods. Every module has a function `load`, which takes a local folder or a
hub id and returns this class; toy models and real models use the same code path.

Images are `float32 [B, 3, H, W] in [-1, 1]`; `image_tensors` converts from and to `uint8`.
Heavy libraries are imported only when a model is loaded.
"""
