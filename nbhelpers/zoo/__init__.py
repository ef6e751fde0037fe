"""The controlled zoo: one small transformer, seven position encodings, dense checkpoints, sizes."""

from nbhelpers.zoo.settings import ENCODINGS, Settings
from nbhelpers.zoo.tables import ZooTables, zoo_yardstick

__all__ = ["ENCODINGS", "Settings", "ZooTables", "zoo_yardstick"]
