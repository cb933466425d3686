//! Tests across functions; see `tests/`.
