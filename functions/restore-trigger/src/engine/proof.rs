//! Proof: what was loaded, and what the restored tables hold, is what the manifest says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_shared::archive::sql;
use holdfast_shared::domain::TableDigest;
use holdfast_shared::domain::fingerprint::RowHasher;
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::copy::{CopyError, Item, RawSession};
use tokio::task::JoinSet;

use crate::engine::database::first_column;
use crate::engine::objects::object_digest;
use crate::engine::peculiar::{Peculiar, number};
use crate::engine::source::Backup;

/// Tables with more text than this are read in several ranges.
const SPLIT_BYTES: u64 = 16 << 20;
const OBJECT_BATCH: usize = 100;
const OBJECT_SLICE_BYTES: usize = 256 * 1024;
const LISTED: usize = 20;

/// Compares what was loaded with the manifest: damage is told by table, before anything is built on it.
pub fn check_loaded(backup: &Backup, peculiar: &Peculiar, loaded: &[TableDigest]) -> Result<(), Fault> {
    let wrong = differences(
        backup,
        peculiar,
        loaded,
        backup.large_objects.as_ref().map(|objects| TableDigest {
            rows: objects.count,
            bytes: objects.bytes,
            fingerprint: objects.fingerprint,
        }),
    );
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Fault::new("backup-damaged", format!("the stored data is not what the manifest says: {}", listed(&wrong)))
        .hint("restore another backup; the object's versions may hold an undamaged one"))
}

/// What is read again and compared as one.
struct Unit {
    name: String,
    /// What was loaded into it, and before that was found to be what the manifest says.
    expected: TableDigest,
    /// By its rows' number only: without a manifest the text of a row may be another server version's, and rows of
    /// partitions whose columns are in different orders cannot be read together.
    counted: bool,
    reads: Vec<Vec<u8>>,
}

/// Reads the restored tables with all sessions and compares.
pub async fn prove(
    backup: &Arc<Backup>,
    peculiar: &Peculiar,
    loaded: &[TableDigest],
    mut sessions: Vec<RawSession>,
) -> Result<Vec<RawSession>, Fault> {
    let Some(session) = sessions.first_mut() else { return Ok(sessions) };
    let units = Arc::new(units(backup, peculiar, loaded, session).await?);
    let reads = units.iter().enumerate().flat_map(|(unit, of)| (0..of.reads.len()).map(move |read| (unit, read)));
    let reads = Arc::new(Mutex::new(reads.collect::<VecDeque<_>>()));
    let found = Arc::new(Mutex::new(vec![TableDigest::default(); units.len()]));
    let mut streams = JoinSet::new();
    for session in sessions {
        streams.spawn(read_all(Arc::clone(&units), Arc::clone(&reads), Arc::clone(&found), session));
    }
    let mut idle = Vec::new();
    while let Some(done) = streams.join_next().await {
        idle.push(done.map_err(|panic| Fault::from_error("internal", &panic))??);
    }
    let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    let mut wrong: Vec<String> = units
        .iter()
        .zip(&found)
        .filter(|(unit, found)| if unit.counted { unit.expected.rows != found.rows } else { unit.expected != **found })
        .map(|(unit, found)| difference(&unit.name, &unit.expected, found))
        .collect();
    let mut objects: Option<TableDigest> = None;
    for block in (0..backup.blocks.len()).filter(|&block| backup.entry(block).is_large_objects()) {
        objects.get_or_insert_default().merge(&loaded[block]);
    }
    if let (Some(expected), Some(session)) = (objects, idle.first_mut()) {
        let found = large_objects(session).await?;
        if found != expected {
            wrong.push(difference("large objects", &expected, &found));
        }
    }
    if wrong.is_empty() {
        return Ok(idle);
    }
    Err(Fault::new("restore-not-equal", format!("the restored database is not the backup: {}", listed(&wrong)))
        .hint("a trigger, rule or default of the target may change rows, and copy_as_text leaves all conversion to the server; nothing of what was not proved stays"))
}

/// Every table; those of a partition tree whose rows were loaded through its root as one, because they need not have
/// come to lie in the partitions that they were in.
async fn units(
    backup: &Backup,
    peculiar: &Peculiar,
    loaded: &[TableDigest],
    session: &mut RawSession,
) -> Result<Vec<Unit>, Fault> {
    let there = |&block: &usize| backup.entry(block).is_table_data() && !peculiar.missing.contains(&block);
    let tables: Vec<usize> = (0..backup.blocks.len()).filter(there).collect();
    let mut trees: BTreeMap<Vec<u8>, BTreeSet<usize>> = BTreeMap::new();
    for &block in &tables {
        if backup.via_root(block)? {
            trees.entry(backup.relation(block)?.0.into_owned()).or_default().insert(block);
        }
    }
    let mut units = Vec::new();
    let mut in_trees = BTreeSet::new();
    for (root, mut members) in trees {
        let partitions = partitions(&root, session).await?;
        members.extend(tables.iter().filter(|&&block| {
            let entry = backup.entry(block);
            let name = [&entry.namespace, &entry.tag].map(|name| name.as_deref().unwrap_or_default());
            partitions.contains(&name.join(b"\n".as_slice()))
        }));
        units.push(tree(backup, loaded, &root, &members)?);
        in_trees.extend(members);
    }
    for &block in tables.iter().filter(|block| !in_trees.contains(block)) {
        units.push(Unit {
            name: backup.name(block),
            expected: TableDigest {
                rows: loaded[block].rows + peculiar.before.get(&block).unwrap_or(&0),
                ..loaded[block]
            },
            counted: !backup.manifested,
            reads: statements(backup, session, block).await?,
        });
    }
    Ok(units)
}

fn tree(backup: &Backup, loaded: &[TableDigest], root: &[u8], members: &BTreeSet<usize>) -> Result<Unit, Fault> {
    let mut expected = TableDigest::default();
    let mut columns: BTreeSet<&[u8]> = BTreeSet::new();
    for &block in members {
        expected.merge(&loaded[block]);
        columns.insert(backup.relation(block)?.1);
    }
    let list = columns.first().copied().filter(|list| backup.manifested && columns.len() == 1 && !list.is_empty());
    let read = match list {
        Some(list) => [b"COPY (SELECT ", list, b" FROM ", root, b") TO STDOUT"].concat(),
        None => [b"COPY (SELECT pg_catalog.count(*) FROM ".as_slice(), root, b") TO STDOUT"].concat(),
    };
    let name = format!("{} with its partitions", String::from_utf8_lossy(root));
    Ok(Unit { name, expected, counted: list.is_none(), reads: vec![read] })
}

/// Schema and name of each, a newline in between.
async fn partitions(root: &[u8], session: &mut RawSession) -> Result<BTreeSet<Vec<u8>>, Fault> {
    let literal = sql::literal(root);
    let sql = [
        b"COPY (SELECT n.nspname || E'\\n' || c.relname FROM pg_catalog.pg_partition_tree(".as_slice(),
        &literal,
        b") t JOIN pg_catalog.pg_class c ON c.oid = t.relid
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace) TO STDOUT",
    ]
    .concat();
    Ok(first_column(session, &sql).await?.into_iter().collect())
}

/// Every table that is not what the manifest says.
fn differences(
    backup: &Backup,
    peculiar: &Peculiar,
    found: &[TableDigest],
    objects: Option<TableDigest>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut objects_found = TableDigest::default();
    for (block, digest) in found.iter().enumerate().filter(|(block, _)| !peculiar.missing.contains(block)) {
        if backup.entry(block).is_large_objects() {
            objects_found.merge(digest);
        } else if let Some(expected) = backup.expected(block).filter(|expected| expected != digest) {
            wrong.push(difference(&backup.name(block), &expected, digest));
        }
    }
    if let Some(expected) = objects.filter(|expected| *expected != objects_found) {
        wrong.push(difference("large objects", &expected, &objects_found));
    }
    wrong
}

fn difference(name: &str, expected: &TableDigest, found: &TableDigest) -> String {
    if expected.rows == found.rows {
        format!("{name}: {} rows, and not the same content", found.rows)
    } else {
        format!("{name}: {} rows instead of {}", found.rows, expected.rows)
    }
}

fn listed(wrong: &[String]) -> String {
    let more = wrong.len().saturating_sub(LISTED);
    let text = wrong.iter().take(LISTED).cloned().collect::<Vec<_>>().join("; ");
    if more > 0 { format!("{text}; and {more} more") } else { text }
}

/// The statements that read a table, big ones in ranges of pages.
async fn statements(backup: &Backup, session: &mut RawSession, block: usize) -> Result<Vec<Vec<u8>>, Fault> {
    let (relation, columns) = backup.relation(block)?;
    let relation: &[u8] = &relation;
    if !backup.manifested {
        let sql = [b"COPY (SELECT pg_catalog.count(*) FROM ONLY ".as_slice(), relation, b") TO STDOUT"].concat();
        return Ok(vec![sql]);
    }
    let table = backup.tables[block].as_ref();
    let filtered = |condition: &str| {
        [b"COPY (SELECT ", columns, b" FROM ONLY ", relation, b" ", condition.as_bytes(), b") TO STDOUT"].concat()
    };
    if let Some(condition) = table.and_then(|table| table.condition.as_deref()) {
        return Ok(vec![filtered(condition)]);
    }
    let bytes = table.map_or(0, |table| table.bytes);
    if bytes > SPLIT_BYTES && !columns.is_empty() {
        let literal = sql::literal(relation);
        let sql = [
            b"COPY (SELECT pg_catalog.pg_relation_size(".as_slice(),
            &literal,
            b"::pg_catalog.regclass) / pg_catalog.current_setting('block_size')::int
               WHERE pg_catalog.current_setting('server_version_num')::int >= 140000) TO STDOUT",
        ]
        .concat();
        let pages = first_column(session, &sql).await?;
        let pages = number(&pages);
        let ranges = (bytes / SPLIT_BYTES + 1).min(pages.max(1));
        let step = pages.div_ceil(ranges).max(1);
        return Ok((0..ranges)
            .map(|range| {
                let from = range * step;
                let to = if range + 1 == ranges { String::new() } else { format!(" AND ctid < '({},0)'", from + step) };
                filtered(&format!("WHERE ctid >= '({from},0)'{to}"))
            })
            .collect());
    }
    let list = if columns.is_empty() { Vec::new() } else { [b" (", columns, b")"].concat() };
    Ok(vec![[b"COPY ", relation, &list, b" TO STDOUT"].concat()])
}

async fn read_all(
    units: Arc<Vec<Unit>>,
    reads: Arc<Mutex<VecDeque<(usize, usize)>>>,
    found: Arc<Mutex<Vec<TableDigest>>>,
    mut session: RawSession,
) -> Result<RawSession, Fault> {
    loop {
        let read = reads.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some((unit, read)) = read else { return Ok(session) };
        let Unit { name, counted, reads, .. } = &units[unit];
        let mut digest = TableDigest::default();
        if *counted {
            let count = first_column(&mut session, &reads[read]).await?;
            digest.rows = number(&count);
        } else {
            read_rows(&mut session, &reads[read], &mut digest).await.map_err(|error| {
                Fault::from_error("restore-not-readable", &error).with_context(&format!("reading {name} again"))
            })?;
        }
        found.lock().unwrap_or_else(PoisonError::into_inner)[unit].merge(&digest);
    }
}

async fn read_rows(session: &mut RawSession, sql: &[u8], digest: &mut TableDigest) -> Result<(), CopyError> {
    let mut copy = session.copy_out(sql).await?;
    let mut oversized: Option<RowHasher> = None;
    loop {
        while let Some(item) = copy.next_item()? {
            match item {
                Item::Row(bytes) => digest.add_row(bytes.strip_suffix(b"\n").unwrap_or(bytes)),
                Item::Fragment { bytes, ends_row } => {
                    let hasher = oversized.get_or_insert_default();
                    hasher.update(if ends_row { bytes.strip_suffix(b"\n").unwrap_or(bytes) } else { bytes });
                    if ends_row && let Some(hasher) = oversized.take() {
                        hasher.finish(digest);
                    }
                }
            }
        }
        if !copy.fill().await? {
            return copy.check_rows();
        }
    }
}

/// The digest of all large objects of the database.
async fn large_objects(session: &mut RawSession) -> Result<TableDigest, Fault> {
    let listed =
        first_column(session, "COPY (SELECT oid FROM pg_catalog.pg_largeobject_metadata ORDER BY oid) TO STDOUT");
    let oids: Vec<u32> = listed.await?.iter().filter_map(|text| std::str::from_utf8(text).ok()?.parse().ok()).collect();
    let mut digest = TableDigest::default();
    for batch in oids.chunks(OBJECT_BATCH) {
        let list = batch.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let sql = format!(
            "COPY (SELECT pg_catalog.encode(pg_catalog.lo_get(o, 0, {OBJECT_SLICE_BYTES}), 'hex') || '.'
                     FROM pg_catalog.unnest('{{{list}}}'::pg_catalog.oid[]) WITH ORDINALITY AS u(o, n) ORDER BY n) TO STDOUT"
        );
        let beginnings = first_column(session, &sql).await?;
        for (&oid, beginning) in batch.iter().zip(beginnings) {
            let (mut hasher, mut size, mut slice) = (RowHasher::default(), 0, content(&beginning));
            loop {
                hasher.update(&slice);
                size += slice.len() as u64;
                if slice.len() < OBJECT_SLICE_BYTES {
                    break;
                }
                let sql = format!(
                    "COPY (SELECT pg_catalog.encode(pg_catalog.lo_get({oid}, {size}, {OBJECT_SLICE_BYTES}), 'hex') || '.') TO STDOUT"
                );
                slice = content(first_column(session, &sql).await?.first().map_or(&[], Vec::as_slice));
            }
            digest.merge(&object_digest(oid, &hasher, size));
        }
    }
    Ok(digest)
}

/// Bytes of hexadecimal digits, up to the dot behind them.
fn content(digits: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or(0) as u8;
    digits.chunks_exact(2).filter(|pair| pair[1] != b'.').map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}
