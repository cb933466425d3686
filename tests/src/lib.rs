//! Flows across functions on the local stack; everything is in `tests/all`, one binary.
