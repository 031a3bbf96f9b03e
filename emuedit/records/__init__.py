"""The nouns that travel between stations, and how they lie on disk."""

from emuedit.records.folder import Summary, fingerprint, publish, read_folder, read_summary, scratch_folder, seal
from emuedit.records.nouns import Answer, Caption, Drop, Instruction, Pair, Record, Verdict
from emuedit.records.picture import PictureError, decode_png, encode_png
from emuedit.records.shard import ShardError, read_shard, write_shard

__all__ = [
    "Answer",
    "Caption",
    "Drop",
    "Instruction",
    "Pair",
    "PictureError",
    "Record",
    "ShardError",
    "Summary",
    "Verdict",
    "decode_png",
    "encode_png",
    "fingerprint",
    "publish",
    "read_folder",
    "read_shard",
    "read_summary",
    "scratch_folder",
    "seal",
    "write_shard",
]
