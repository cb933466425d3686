//! Large objects: which there are, and how they are read. They are no table's rows, and have no COPY of their own.

use std::sync::atomic::Ordering;

use holdfast_shared::archive::toc::{Entry, Toc};
use holdfast_shared::domain::TableDigest;
use holdfast_shared::domain::fingerprint::RowHasher;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::export::Extent;
use holdfast_shared::postgres::copy::{CopyError, Item, RawSession};
use holdfast_shared::postgres::session::copy_fault;

use crate::queue::Work;
use crate::read::Source;
use crate::writer::Writer;

/// Large objects that one query asks for the beginnings of.
const OBJECT_BATCH: usize = 100;
/// What one call of `lo_get` returns at most; a row of a COPY.
const OBJECT_SLICE_BYTES: usize = 256 * 1024;

/// The oids of a BLOBS entry: those of the BLOB METADATA it depends on (17 on), or of all BLOB entries.
pub fn large_object_source(toc: &Toc, entry: &Entry, (count, bytes): (u64, u64)) -> Result<(Extent, Source), Fault> {
    let dependencies: Vec<i32> =
        entry.dependencies.iter().filter_map(|id| std::str::from_utf8(id).ok()?.parse().ok()).collect();
    let grouped = toc.entries.iter().filter(|e| e.desc() == b"BLOB METADATA" && dependencies.contains(&e.dump_id));
    let mut oids = Vec::new();
    for metadata in grouped {
        oids.extend(oid_list(metadata.defn.as_deref().unwrap_or_default()));
    }
    if oids.is_empty() {
        oids = toc.entries.iter().filter(|e| e.desc() == b"BLOB").filter_map(Entry::oid).collect();
    }
    if oids.is_empty() {
        return Err(Fault::new("archive-entry-unknown", "the large objects of the archive are not listed as expected"));
    }
    let share = bytes * oids.len() as u64 / count.max(1);
    Ok((Extent::LargeObjects { count: oids.len() as u64, bytes: share }, Source::LargeObjects { oids }))
}

/// One oid a line.
fn oid_list(defn: &[u8]) -> impl Iterator<Item = u32> {
    defn.split(|&byte| byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()?.trim().parse().ok())
}

/// Reads large objects in batches: the beginnings of many in one query, and what is longer slice by slice.
pub async fn copy_large_objects(
    work: &Work,
    session: &mut RawSession,
    oids: &[u32],
    writer: &mut Writer,
    digest: &mut TableDigest,
) -> Result<(), Fault> {
    for batch in oids.chunks(OBJECT_BATCH) {
        let list = batch.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let sql = format!(
            "COPY (SELECT pg_catalog.lo_get(o, 0, {OBJECT_SLICE_BYTES})
                     FROM pg_catalog.unnest('{{{list}}}'::pg_catalog.oid[]) WITH ORDINALITY AS u(o, n) ORDER BY n)
             TO STDOUT (FORMAT binary)"
        );
        let beginnings = binary_values(session, &sql).await.map_err(|error| copy_fault(&error, "large objects"))?;
        if beginnings.len() != batch.len() {
            return Err(Fault::new("large-objects-unreadable", "not every large object was returned"));
        }
        work.note_first_row();
        for (&oid, beginning) in batch.iter().zip(beginnings) {
            let mut hasher = RowHasher::default();
            let mut size = 0;
            writer.begin_large_object(oid);
            let mut slice = beginning;
            loop {
                writer.large_object_data(&slice)?;
                hasher.update(&slice);
                size += slice.len() as u64;
                work.assembly.progress.text_bytes.fetch_add(slice.len() as u64, Ordering::Relaxed);
                if writer.wants_cut(true) {
                    writer.cut(&work.assembly, true).await?;
                }
                if slice.len() < OBJECT_SLICE_BYTES {
                    break;
                }
                let sql = format!(
                    "COPY (SELECT pg_catalog.lo_get({oid}::pg_catalog.oid, {size}, {OBJECT_SLICE_BYTES})) TO STDOUT (FORMAT binary)"
                );
                let next = binary_values(session, &sql).await.map_err(|error| copy_fault(&error, "large objects"))?;
                slice = next.into_iter().next().unwrap_or_default();
            }
            writer.end_large_object()?;
            let row = format!("{oid}\t{:032x}", hasher.digest());
            digest.add_row(row.as_bytes());
            digest.bytes = digest.bytes + size - (row.len() as u64 + 1);
            if writer.wants_cut(false) {
                writer.cut(&work.assembly, false).await?;
            }
        }
    }
    Ok(())
}

/// The one `bytea` of each row of a COPY in binary format (PostgreSQL documentation, "COPY", "Binary Format").
async fn binary_values(session: &mut RawSession, sql: &str) -> Result<Vec<Vec<u8>>, CopyError> {
    const HEADER_BYTES: usize = 19;
    const MALFORMED: CopyError = CopyError::Protocol { what: "binary COPY data that is not as documented" };
    let mut copy = session.copy_out(sql).await?;
    let mut data = Vec::new();
    loop {
        while let Some(item) = copy.next_item()? {
            match item {
                Item::Row(bytes) | Item::Fragment { bytes, .. } => data.extend_from_slice(bytes),
            }
        }
        if !copy.fill().await? {
            break;
        }
    }
    let mut rest = data.get(HEADER_BYTES..).ok_or(MALFORMED)?;
    let mut values = Vec::new();
    loop {
        let (fields, tail) = rest.split_first_chunk::<2>().ok_or(MALFORMED)?;
        if i16::from_be_bytes(*fields) == -1 {
            return Ok(values);
        }
        let (len, tail) = tail.split_first_chunk::<4>().ok_or(MALFORMED)?;
        let len = usize::try_from(i32::from_be_bytes(*len)).unwrap_or(0);
        values.push(tail.get(..len).ok_or(MALFORMED)?.to_vec());
        rest = &tail[len..];
    }
}
