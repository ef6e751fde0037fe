"""The controlled zoo: one small transformer, seven position encodings, dense checkpoints, sizes."""
