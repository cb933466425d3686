//! The `pg_dump` custom-format archive: its table of contents, its data blocks, and how an object is put
//! together from parts that arrive in any order.
//!
//! Source: PostgreSQL's `pg_backup_archiver.c`, `pg_backup_custom.c`, `compress_zstd.c`, `compress_gzip.c` (13–18).

pub mod admit;
pub mod blocks;
pub mod codec;
pub mod decode;
pub mod extract;
pub mod lexer;
pub mod older;
pub mod rows;
pub mod script;
pub mod spine;
pub mod sql;
pub mod toc;
pub mod wire;

#[cfg(test)]
mod reading_tests;
