"""Other people's networks, one small call each.

Every network stands behind one class with one or two verbs, and every module has one `load` that takes a local folder
or a hub id and gives that class back. A toy folder and a real model go through the same lines.

Images are `float32 [B, 3, H, W] in [-1, 1]`; `pixels` is the door to and from `uint8`.
Nothing heavy is imported before a model is loaded.
"""
