"""Text in, batches of tokens out.

`prepare` turns a source of documents into token files once; `batch` and `windows` read them.
Reading prepared data needs neither `datasets` nor `pyarrow`.
"""

from smollm2.data.batches import (
    batch,
    epochs,
    require_uncut,
    spread_windows,
    window_count,
    windows,
)
from smollm2.data.byte_account import ByteAccount, count_bytes, token_bytes
from smollm2.data.corpora import documents, source_name
from smollm2.data.prepare import prepare
from smollm2.data.token_data import TokenData, find_prepared, is_prepared, open_prepared
from smollm2.data.tokenizer import (
    Bounds,
    document_bounds,
    encode_text,
    end_of_text_id,
    load_tokenizer,
    parse_train_spec,
    require_vocab,
    special_ids,
    tokenizer_fingerprint,
    train_tokenizer,
)

__all__ = [
    "Bounds",
    "ByteAccount",
    "TokenData",
    "batch",
    "count_bytes",
    "document_bounds",
    "documents",
    "encode_text",
    "end_of_text_id",
    "epochs",
    "find_prepared",
    "is_prepared",
    "load_tokenizer",
    "open_prepared",
    "parse_train_spec",
    "prepare",
    "require_uncut",
    "require_vocab",
    "source_name",
    "special_ids",
    "spread_windows",
    "token_bytes",
    "tokenizer_fingerprint",
    "train_tokenizer",
    "window_count",
    "windows",
]
