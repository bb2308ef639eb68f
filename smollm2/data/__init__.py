"""Text in, batches of tokens out.

`prepare` turns a source of documents into token files once; `batch` and `windows` read them.
Reading prepared data needs neither `datasets` nor `pyarrow`.
"""

from smollm2.data.batches import batch, epochs, spread_windows, window_count, windows
from smollm2.data.documents import documents, source_name
from smollm2.data.prepare import (
    TokenData,
    cache_dir,
    find_prepared,
    is_prepared,
    open_prepared,
    prepare,
)
from smollm2.data.tokenizer import (
    Bounds,
    document_bounds,
    end_of_text_id,
    load_tokenizer,
    parse_train_spec,
    require_vocab,
    token_bytes,
    tokenizer_fingerprint,
    train_tokenizer,
)

__all__ = [
    "Bounds",
    "TokenData",
    "batch",
    "cache_dir",
    "document_bounds",
    "documents",
    "end_of_text_id",
    "epochs",
    "find_prepared",
    "is_prepared",
    "load_tokenizer",
    "open_prepared",
    "parse_train_spec",
    "prepare",
    "require_vocab",
    "source_name",
    "spread_windows",
    "token_bytes",
    "tokenizer_fingerprint",
    "train_tokenizer",
    "window_count",
    "windows",
]
