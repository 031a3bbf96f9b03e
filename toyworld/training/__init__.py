"""How the toy world's own pretrained models were trained: one file a model, one loop for all."""
