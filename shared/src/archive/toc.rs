//! The table of contents: header and entries, read from and written as `pg_dump` has them.
//!
//! Strings stay bytes: they are in the database's encoding, which need not be UTF-8.

use std::borrow::Cow;
use std::io::Read;

use sha2::{Digest, Sha256};

use crate::archive::wire::{WireError, WireReader, put_int, put_string};

const MAGIC: &[u8; 5] = b"PGDMP";
const FORMAT_CUSTOM: u8 = 1;
const OFFSET_SIZE: u8 = 8;
const MAX_ENTRIES: i64 = 20_000_000;

/// An archive version, such as 1.16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArchiveVersion {
    pub minor: u8,
    pub revision: u8,
}

impl ArchiveVersion {
    /// 12–15 write it.
    pub const V1_14: Self = Self { minor: 14, revision: 0 };
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
        let header = &self.header;
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[1, header.version.minor, header.version.revision, 4, OFFSET_SIZE, FORMAT_CUSTOM]);
        render_compression(&mut out, header);
        header.created.iter().for_each(|&field| put_int(&mut out, field));
        for text in [&header.database, &header.server_version, &header.pg_dump_version] {
            put_string(&mut out, text.as_deref());
        }
        put_int(&mut out, i32::try_from(self.entries.len()).unwrap_or(i32::MAX));
        self.entries.iter().for_each(|entry| render_entry(&mut out, entry, header.version));
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

fn read_header(reader: &mut WireReader<impl Read>) -> Result<(Header, u8), TocError> {
    if &reader.bytes::<5>()? != MAGIC {
        return Err(TocError::NotAnArchive);
    }
    let [major, minor, revision] = reader.bytes::<3>()?;
    if major != 1 || !(14..=16).contains(&minor) {
        return Err(TocError::UnknownVersion { major, minor });
    }
    let version = ArchiveVersion { minor, revision };
    reader.int_size = reader.byte()?;
    let offset_size = reader.byte()?;
    if !(1..=8).contains(&offset_size) {
        return Err(TocError::OffsetSize { size: offset_size });
    }
    let format = reader.byte()?;
    if format != FORMAT_CUSTOM {
        return Err(TocError::NotCustomFormat { format });
    }
    let compression = if version >= ArchiveVersion::V1_15 {
        match reader.byte()? {
            0 => HeaderCompression::None,
            1 => HeaderCompression::Gzip,
            2 => HeaderCompression::Lz4,
            3 => HeaderCompression::Zstd,
            code => return Err(TocError::UnknownCompression { code }),
        }
    } else if reader.int()? == 0 {
        HeaderCompression::None
    } else {
        HeaderCompression::Gzip
    };
    let mut created = [0; 7];
    for field in &mut created {
        *field = narrow(reader.int()?, "a date field")?;
    }
    let header = Header {
        version,
        compression,
        created,
        database: reader.string()?,
        server_version: reader.string()?,
        pg_dump_version: reader.string()?,
    };
    Ok((header, offset_size))
}

fn read_entry(reader: &mut WireReader<impl Read>, version: ArchiveVersion, offset_size: u8) -> Result<Entry, TocError> {
    let dump_id = narrow(reader.int()?, "a dump id")?;
    let had_dumper = reader.int()? != 0;
    let catalog_oid = reader.string()?;
    let oid = reader.string()?;
    let tag = reader.string()?;
    let desc = reader.string()?;
    let section = narrow(reader.int()?, "a section")?;
    let defn = reader.string()?;
    let drop_stmt = reader.string()?;
    let copy_stmt = reader.string()?;
    let namespace = reader.string()?;
    let tablespace = reader.string()?;
    let table_access_method = reader.string()?;
    let relkind = if version >= ArchiveVersion::V1_16 { narrow(reader.int()?, "a relation kind")? } else { 0 };
    let owner = reader.string()?;
    let with_oids = reader.string()?;
    let mut dependencies = Vec::new();
    while let Some(dependency) = reader.string()? {
        dependencies.push(dependency);
    }
    let flag = reader.byte()?;
    let mut value: u64 = 0;
    for shift in 0..offset_size {
        value |= u64::from(reader.byte()?) << (8 * u32::from(shift));
    }
    let offset = match flag {
        1 => Offset::NotSet,
        2 => Offset::Set(value),
        3 => Offset::NoData,
        other => return Err(TocError::Implausible { what: "an offset flag", value: i64::from(other) }),
    };
    Ok(Entry {
        dump_id,
        had_dumper,
        catalog_oid,
        oid,
        tag,
        desc,
        section,
        defn,
        drop_stmt,
        copy_stmt,
        namespace,
        tablespace,
        table_access_method,
        relkind,
        owner,
        with_oids,
        dependencies,
        offset,
    })
}

fn narrow(value: i64, what: &'static str) -> Result<i32, TocError> {
    i32::try_from(value).map_err(|_| TocError::Implausible { what, value })
}

fn render_compression(out: &mut Vec<u8>, header: &Header) {
    if header.version >= ArchiveVersion::V1_15 {
        out.push(match header.compression {
            HeaderCompression::None => 0,
            HeaderCompression::Gzip => 1,
            HeaderCompression::Lz4 => 2,
            HeaderCompression::Zstd => 3,
        });
    } else {
        // 1.14 stores zlib's level: 0 none, -1 its default.
        put_int(out, if header.compression == HeaderCompression::None { 0 } else { -1 });
    }
}

fn render_entry(out: &mut Vec<u8>, entry: &Entry, version: ArchiveVersion) {
    put_int(out, entry.dump_id);
    put_int(out, i32::from(entry.had_dumper));
    for text in [&entry.catalog_oid, &entry.oid, &entry.tag, &entry.desc] {
        put_string(out, text.as_deref());
    }
    put_int(out, entry.section);
    for text in [
        &entry.defn,
        &entry.drop_stmt,
        &entry.copy_stmt,
        &entry.namespace,
        &entry.tablespace,
        &entry.table_access_method,
    ] {
        put_string(out, text.as_deref());
    }
    if version >= ArchiveVersion::V1_16 {
        put_int(out, entry.relkind);
    }
    put_string(out, entry.owner.as_deref());
    put_string(out, entry.with_oids.as_deref());
    entry.dependencies.iter().for_each(|dependency| put_string(out, Some(dependency)));
    put_string(out, None);
    let (flag, value) = match entry.offset {
        Offset::NotSet => (1, 0),
        Offset::Set(value) => (2, value),
        Offset::NoData => (3, 0),
    };
    out.push(flag);
    out.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = Option<Vec<u8>>> {
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20))
    }

    prop_compose! {
        fn entry(relkinds: bool)(
            dump_id in 1i32..100_000, had_dumper in any::<bool>(), texts in proptest::collection::vec(text(), 12),
            section in 1i32..5, relkind in 0i32..128, dependencies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 0..4),
            offset in prop_oneof![Just(Offset::NotSet), any::<u64>().prop_map(Offset::Set), Just(Offset::NoData)],
        ) -> Entry {
            let mut texts = texts.into_iter();
            let mut next = || texts.next().flatten();
            Entry {
                dump_id, had_dumper, catalog_oid: next(), oid: next(), tag: next(), desc: next(), section, defn: next(),
                drop_stmt: next(), copy_stmt: next(), namespace: next(), tablespace: next(), table_access_method: next(),
                relkind: if relkinds { relkind } else { 0 }, owner: next(), with_oids: next(), dependencies, offset,
            }
        }
    }

    fn toc() -> impl Strategy<Value = Toc> {
        (14u8..17).prop_flat_map(|minor| {
            let compression = match minor {
                14 => prop_oneof![Just(HeaderCompression::None), Just(HeaderCompression::Gzip)].boxed(),
                _ => prop_oneof![
                    Just(HeaderCompression::Zstd),
                    Just(HeaderCompression::Gzip),
                    Just(HeaderCompression::Lz4)
                ]
                .boxed(),
            };
            (compression, text(), proptest::collection::vec(entry(minor == 16), 0..5)).prop_map(
                move |(compression, database, entries)| Toc {
                    header: Header {
                        version: ArchiveVersion { minor, revision: 0 },
                        compression,
                        created: [1, 2, 3, 4, 5, 125, 0],
                        database,
                        server_version: None,
                        pg_dump_version: Some(b"18.4".to_vec()),
                    },
                    entries,
                },
            )
        })
    }

    proptest! {
        #[test]
        fn reading_is_the_inverse_of_rendering(toc in toc()) {
            let bytes = toc.render();
            let (read, consumed) = Toc::read(bytes.as_slice()).unwrap();
            prop_assert_eq!(read, toc);
            prop_assert_eq!(consumed, bytes.len() as u64);
        }

        #[test]
        fn a_cut_archive_says_that_it_is_cut(toc in toc(), cut in 0.0f64..1.0) {
            let bytes = toc.render();
            let cut = (bytes.len() as f64 * cut) as usize;
            prop_assert!(Toc::read(&bytes[..cut]).unwrap_err().is_truncated());
        }

        #[test]
        fn a_damaged_archive_never_panics(toc in toc(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
            let mut bytes = toc.render();
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = Toc::read(bytes.as_slice());
        }
    }

    #[test]
    fn other_files_are_refused_by_what_they_are() {
        assert!(matches!(Toc::read(&b"-- PostgreSQL"[..]), Err(TocError::NotAnArchive)));
        assert!(matches!(Toc::read(&b"PGDMP\x01\x0d\x00"[..]), Err(TocError::UnknownVersion { major: 1, minor: 13 })));
        assert!(matches!(
            Toc::read(&b"PGDMP\x01\x10\x00\x04\x08\x03"[..]),
            Err(TocError::NotCustomFormat { format: 3 })
        ));
    }
}
