//! Header and entries, field by field: how each is read, and written.

use std::io::Read;

use super::{ArchiveVersion, Entry, Header, HeaderCompression, Offset, TocError};
use crate::archive::wire::{WireReader, put_int, put_string};

const MAGIC: &[u8; 5] = b"PGDMP";
const FORMAT_CUSTOM: u8 = 1;
/// What we write; others are read.
const INT_SIZE: u8 = 4;
const OFFSET_SIZE: u8 = 8;

/// The header, and the size of an offset in the entries behind it.
pub(super) fn read_header(reader: &mut WireReader<impl Read>) -> Result<(Header, u8), TocError> {
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

pub(super) fn read_entry(
    reader: &mut WireReader<impl Read>,
    version: ArchiveVersion,
    offset_size: u8,
) -> Result<Entry, TocError> {
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

pub(super) fn render_header(out: &mut Vec<u8>, header: &Header) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[1, header.version.minor, header.version.revision, INT_SIZE, OFFSET_SIZE, FORMAT_CUSTOM]);
    render_compression(out, header);
    header.created.iter().for_each(|&field| put_int(out, field));
    for text in [&header.database, &header.server_version, &header.pg_dump_version] {
        put_string(out, text.as_deref());
    }
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

pub(super) fn render_entry(out: &mut Vec<u8>, entry: &Entry, version: ArchiveVersion) {
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
