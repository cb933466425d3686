//! The table of contents: header and entries, read from and written as `pg_dump` has them.
//!
//! Strings stay bytes: they are in the database's encoding, which need not be UTF-8.

mod fields;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io::Read;

use sha2::{Digest, Sha256};

use crate::archive::wire::{WireError, WireReader, put_int};

use fields::{read_entry, read_header, render_entry, render_header};

const MAX_ENTRIES: i64 = 20_000_000;
/// `relkind` of a partitioned table (`pg_class.h`).
pub const RELKIND_PARTITIONED_TABLE: i32 = b'p' as i32;

/// An archive version, such as 1.16; `pg_dump` 12 to 15 write 1.14.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArchiveVersion {
    pub minor: u8,
    pub revision: u8,
}

impl ArchiveVersion {
    /// 16: the compression algorithm is named in the header.
    pub const V1_15: Self = Self { minor: 15, revision: 0 };
    /// 17 and 18: relation kinds, and large objects grouped.
    pub const V1_16: Self = Self { minor: 16, revision: 0 };

    /// The oldest `pg_restore` major that reads this version.
    pub fn pg_restore_major(self) -> u32 {
        match self.minor {
            ..=14 => 12,
            15 => 16,
            _ => 17,
        }
    }
}

impl std::fmt::Display for ArchiveVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "1.{}", self.minor)
    }
}

/// How data blocks are compressed, as the header says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderCompression {
    None,
    Gzip,
    Lz4,
    Zstd,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub version: ArchiveVersion,
    pub compression: HeaderCompression,
    /// Seconds, minutes, hours, day, month (from 0), year (from 1900), daylight saving: a C `struct tm`.
    pub created: [i32; 7],
    pub database: Option<Vec<u8>>,
    pub server_version: Option<Vec<u8>>,
    pub pg_dump_version: Option<Vec<u8>>,
}

/// Where an entry's data block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offset {
    NotSet,
    Set(u64),
    NoData,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub dump_id: i32,
    pub had_dumper: bool,
    pub catalog_oid: Option<Vec<u8>>,
    pub oid: Option<Vec<u8>>,
    pub tag: Option<Vec<u8>>,
    pub desc: Option<Vec<u8>>,
    /// 1 none, 2 pre-data, 3 data, 4 post-data.
    pub section: i32,
    pub defn: Option<Vec<u8>>,
    pub drop_stmt: Option<Vec<u8>>,
    pub copy_stmt: Option<Vec<u8>>,
    pub namespace: Option<Vec<u8>>,
    pub tablespace: Option<Vec<u8>>,
    pub table_access_method: Option<Vec<u8>>,
    pub relkind: i32,
    pub owner: Option<Vec<u8>>,
    pub with_oids: Option<Vec<u8>>,
    pub dependencies: Vec<Vec<u8>>,
    pub offset: Offset,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toc {
    pub header: Header,
    pub entries: Vec<Entry>,
}

#[derive(Debug, thiserror::Error)]
pub enum TocError {
    #[error("not a pg_dump archive: it does not begin with PGDMP")]
    NotAnArchive,
    #[error("archive version {major}.{minor} is not one of 1.14 to 1.16")]
    UnknownVersion { major: u8, minor: u8 },
    #[error("archive format {format} is not the custom format")]
    NotCustomFormat { format: u8 },
    #[error("offsets of {size} bytes are not supported")]
    OffsetSize { size: u8 },
    #[error("compression algorithm {code} is unknown")]
    UnknownCompression { code: u8 },
    #[error("{what} of {value} in the table of contents is not plausible")]
    Implausible { what: &'static str, value: i64 },
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl TocError {
    /// Whether more bytes might make it readable.
    pub fn is_truncated(&self) -> bool {
        matches!(self, Self::Wire(WireError::Truncated))
    }
}

impl Entry {
    pub fn desc(&self) -> &[u8] {
        self.desc.as_deref().unwrap_or_default()
    }

    /// Schema and tag for messages.
    pub fn label(&self) -> String {
        let text = |bytes: &Option<Vec<u8>>| String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()).into_owned();
        match self.namespace.as_deref() {
            None | Some(b"") => text(&self.tag),
            Some(_) => format!("{}.{}", text(&self.namespace), text(&self.tag)),
        }
    }

    pub fn is_table_data(&self) -> bool {
        self.desc() == b"TABLE DATA"
    }

    pub fn is_large_objects(&self) -> bool {
        self.desc() == b"BLOBS"
    }

    /// The object's oid; `None` where `pg_dump` wrote none.
    pub fn oid(&self) -> Option<u32> {
        std::str::from_utf8(self.oid.as_deref()?).ok()?.parse().ok().filter(|&oid| oid != 0)
    }
}

impl Toc {
    /// Reads header and entries; the reader is left at the first data block.
    ///
    /// # Errors
    /// [`TocError`]; nothing is allocated on the word of a length field alone.
    pub fn read(reader: impl Read) -> Result<(Self, u64), TocError> {
        let mut reader = WireReader::new(reader);
        let (header, offset_size) = read_header(&mut reader)?;
        let count = reader.int()?;
        if !(0..=MAX_ENTRIES).contains(&count) {
            return Err(TocError::Implausible { what: "an entry count", value: count });
        }
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(read_entry(&mut reader, header.version, offset_size)?);
        }
        Ok((Self { header, entries }, reader.position()))
    }

    /// The archive's head: everything before the first data block.
    pub fn render(&self) -> Vec<u8> {
        let mut out = Vec::new();
        render_header(&mut out, &self.header);
        put_int(&mut out, i32::try_from(self.entries.len()).unwrap_or(i32::MAX));
        self.entries.iter().for_each(|entry| render_entry(&mut out, entry, self.header.version));
        out
    }

    /// The encoding of the archive's text, from its ENCODING entry (`SET client_encoding = 'UTF8';`).
    pub fn encoding(&self) -> Option<Cow<'_, str>> {
        let entry = self.entries.iter().find(|entry| entry.desc() == b"ENCODING")?;
        let text = std::str::from_utf8(entry.defn.as_deref()?).ok()?;
        text.split('\'').nth(1).map(Cow::from)
    }

    /// SHA-256 over the definitions, independent of dump ids, oids and the order of entries.
    pub fn fingerprint(&self) -> String {
        let mut definitions: Vec<Vec<u8>> = self
            .entries
            .iter()
            .filter(|entry| !matches!(entry.desc(), b"SEQUENCE SET" | b"BLOB" | b"BLOB METADATA" | b"BLOBS"))
            .map(|entry| {
                let fields = [&entry.desc, &entry.namespace, &entry.tag, &entry.owner, &entry.defn, &entry.copy_stmt];
                let mut text = Vec::new();
                for field in fields {
                    text.extend_from_slice(field.as_deref().unwrap_or_default());
                    text.push(0);
                }
                text
            })
            .collect();
        definitions.sort_unstable();
        let mut hash = Sha256::new();
        for definition in definitions {
            hash.update((definition.len() as u64).to_le_bytes());
            hash.update(definition);
        }
        format!("sha256:{}", hex::encode(hash.finalize()))
    }

    /// A dump id that no entry has.
    pub fn unused_dump_id(&self) -> i32 {
        self.entries.iter().map(|entry| entry.dump_id).max().unwrap_or(0).saturating_add(1)
    }
}

/// Of everything before the first data block.
pub fn head_checksum(head: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(head)))
}
