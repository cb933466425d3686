//! Looks at everything the plan depends on: the server, what may be read, the snapshot, the table of contents.

use std::collections::BTreeMap;

use holdfast_shared::archive::codec::Compression;
use holdfast_shared::archive::toc::{Entry, Offset, Toc};
use holdfast_shared::config::ExportConfig;
use holdfast_shared::domain::manifest::Selection;
use holdfast_shared::domain::{QualifiedName, TablePattern};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::plan::export::{DataEntry, Extent};
use holdfast_shared::postgres::catalog::{self, RelationFacts, ServerFacts};
use holdfast_shared::postgres::connect::{Connector, Session};
use holdfast_shared::postgres::pg_dump::{PgDump, PgDumpError};
use holdfast_shared::postgres::session::{Client, query_fault, session_settings};

use crate::read::{Source, table_source};

/// From this version on a range of ctids is read without scanning the table.
const TID_RANGE_SCAN_MAJOR: u32 = 14;
/// Tables named in one LOCK statement.
const LOCK_BATCH: usize = 500;
const LISTED: usize = 20;

pub struct Observed {
    pub snapshot: String,
    pub facts: ServerFacts,
    pub pg_dump: PgDump,
    pub compression: Compression,
    pub toc: Toc,
    /// What the plan is made of, in the table of contents' order.
    pub entries: Vec<DataEntry>,
    /// How each of them is read.
    pub sources: Vec<Source>,
    pub encoding: String,
    pub warnings: Vec<String>,
}

/// Returns what was seen, and the session that holds the snapshot and a lock on every table that is read.
pub async fn observe(
    config: &ExportConfig,
    selection: &Selection,
    connector: &Connector,
) -> Result<(Observed, Session), Fault> {
    let (pg_dump, holder) = tokio::join!(PgDump::find(&config.pg_dump), connector.session());
    let (pg_dump, holder) = (pg_dump?, holder?);
    holder.refuse_pooler().await?;
    let client = &holder.client;
    let facts = catalog::server_facts(client).await.map_err(query_fault)?;
    pg_dump.check_server(facts.major(), &facts.version)?;
    if !(13..=18).contains(&facts.major()) {
        return Err(Fault::new(
            "server-unsupported",
            format!("server version {} is not one of 13 to 18", facts.version),
        ));
    }

    let mut warnings = Vec::new();
    check_selection(client, selection, &mut warnings).await?;
    check_rights(client, &facts, selection).await?;

    let lock_timeout_ms = config.lock_timeout.as_millis() as u64;
    client.batch_execute(&session_settings(facts.major(), config.lock_timeout)).await.map_err(query_fault)?;
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await.map_err(query_fault)?;
    let row = client.query_one("SELECT pg_catalog.pg_export_snapshot()", &[]).await.map_err(query_fault)?;
    let snapshot: String = row.try_get(0).map_err(query_fault)?;

    let dump = pg_dump.table_of_contents(connector.target(), &snapshot, selection, lock_timeout_ms).await;
    let (mut toc, running) = match dump {
        Ok(dump) => dump,
        Err(error) => return Err(explain_pg_dump(client, error).await),
    };
    let compression = config.compression.unwrap_or_else(|| Compression::default_for(facts.major(), toc.header.version));
    if !compression.fits(toc.header.version) {
        return Err(Fault::new(
            "compression-unsupported",
            format!("archives of version {} cannot be compressed with {compression}", toc.header.version),
        )
        .hint("set COMPRESSION=gzip, or use a pg_dump of version 16 or later"));
    }

    let oids: Vec<u32> = data_entries(&toc).filter_map(|(_, entry)| entry.oid()).collect();
    let relations = catalog::relation_facts(client, &oids, facts.block_size).await.map_err(query_fault)?;
    lock_tables(client, &relations).await?;
    running.stop().await;

    if !selection.include.is_empty() {
        let owners = catalog::schema_owners(client).await.map_err(query_fault)?;
        add_schema_entries(&mut toc, &owners);
    }
    let (entries, sources) = data_sources(client, &facts, &toc, &relations).await?;
    let encoding = toc.encoding().map_or_else(|| facts.encoding.clone(), std::borrow::Cow::into_owned);
    let observed = Observed { snapshot, facts, pg_dump, compression, toc, entries, sources, encoding, warnings };
    Ok((observed, holder))
}

/// A chosen table that does not exist is a mistake; one left out that does not exist is worth a word.
async fn check_selection(client: &Client, selection: &Selection, warnings: &mut Vec<String>) -> Result<(), Fault> {
    if *selection == Selection::default() {
        return Ok(());
    }
    let tables = catalog::user_tables(client).await.map_err(query_fault)?;
    let unmatched = |patterns: &[TablePattern]| -> Vec<String> {
        patterns.iter().filter(|p| !tables.iter().any(|table| p.matches(table))).map(ToString::to_string).collect()
    };
    let missing = unmatched(&selection.include);
    if !missing.is_empty() {
        return Err(Fault::new("tables-not-found", format!("no table matches {}", missing.join(", ")))
            .hint("names are matched as they are stored, upper and lower case apart"));
    }
    for pattern in unmatched(&selection.exclude).into_iter().chain(unmatched(&selection.exclude_data)) {
        warnings.push(format!("no table matches the excluded {pattern}"));
    }
    Ok(())
}

/// Everything that cannot be read is told at once, before any data is read.
async fn check_rights(client: &Client, facts: &ServerFacts, selection: &Selection) -> Result<(), Fault> {
    let chosen = |name: &QualifiedName| {
        (selection.include.is_empty() || selection.include.iter().any(|pattern| pattern.matches(name)))
            && !selection.exclude.iter().any(|pattern| pattern.matches(name))
    };
    let mut unreadable = catalog::unreadable_relations(client, facts).await.map_err(query_fault)?;
    unreadable.retain(|relation| chosen(&relation.name));
    if !unreadable.is_empty() {
        let mut remedies: Vec<&str> = unreadable.iter().map(|relation| relation.remedy.as_str()).collect();
        remedies.dedup();
        let listed: Vec<String> = unreadable
            .iter()
            .take(LISTED)
            .map(|relation| format!("{} ({})", relation.name, relation.problem))
            .collect();
        let more = unreadable.len().saturating_sub(LISTED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let all =
            if facts.major() >= 14 { "; or GRANT pg_read_all_data, and BYPASSRLS where rows are hidden" } else { "" };
        return Err(Fault::new(
            "table-not-readable",
            format!("{} may not read {}{more}", facts.role, listed.join(", ")),
        )
        .hint(format!("{}{all}", remedies.into_iter().take(LISTED).collect::<Vec<_>>().join("; "))));
    }
    if selection.include.is_empty() {
        let objects = catalog::unreadable_large_objects(client, LISTED as i64).await.map_err(query_fault)?;
        if let Some(first) = objects.first() {
            let role = holdfast_shared::domain::table::quote_identifier(&facts.role);
            return Err(Fault::new(
                "large-object-not-readable",
                format!("{} may not read large objects {objects:?}", facts.role),
            )
            .hint(format!("GRANT SELECT ON LARGE OBJECT {first} TO {role}, or make {role} a member of their owner")));
        }
    }
    Ok(())
}

/// `pg_dump` waits for locks, too: whoever stands in the way is named.
async fn explain_pg_dump(client: &Client, error: PgDumpError) -> Fault {
    let PgDumpError::Failed { message } = &error else { return error.into() };
    if message.contains("lock timeout") || message.contains("could not obtain lock") {
        return lock_fault(client, &chain(&error)).await;
    }
    error.into()
}

async fn lock_fault(client: &Client, otherwise: &str) -> Fault {
    let blockers = catalog::blockers(client).await.unwrap_or_default();
    let described: Vec<String> =
        blockers.iter().map(|blocker| format!("{}: {}", blocker.table, blocker.description)).collect();
    let message = if described.is_empty() { otherwise.to_owned() } else { described.join("; ") };
    Fault::new("table-locked", format!("a table stayed locked longer than the lock timeout: {message}"))
        .hint("end that session, or raise LOCK_TIMEOUT_MS")
}

fn data_entries(toc: &Toc) -> impl Iterator<Item = (usize, &Entry)> {
    toc.entries.iter().enumerate().filter(|(_, entry)| entry.had_dumper && entry.offset == Offset::NotSet)
}

/// Our own locks, taken while `pg_dump` still holds its own.
async fn lock_tables(client: &Client, relations: &BTreeMap<u32, RelationFacts>) -> Result<(), Fault> {
    let lockable: Vec<String> = relations
        .values()
        .filter(|relation| matches!(relation.kind, 'r' | 'p' | 'f'))
        .map(|relation| format!("ONLY {}", relation.name.quoted()))
        .collect();
    for batch in lockable.chunks(LOCK_BATCH) {
        let sql =
            format!("SAVEPOINT locks; LOCK TABLE {} IN ACCESS SHARE MODE; RELEASE SAVEPOINT locks", batch.join(", "));
        if let Err(error) = client.batch_execute(&sql).await {
            let timed_out = error.code().is_some_and(|state| state.code() == "55P03");
            if !timed_out {
                return Err(query_fault(error));
            }
            let _ = client.batch_execute("ROLLBACK TO SAVEPOINT locks").await;
            return Err(lock_fault(client, &chain(&error)).await);
        }
    }
    Ok(())
}

async fn data_sources(
    client: &Client,
    facts: &ServerFacts,
    toc: &Toc,
    relations: &BTreeMap<u32, RelationFacts>,
) -> Result<(Vec<DataEntry>, Vec<Source>), Fault> {
    let mut large_objects: Option<(u64, u64)> = None;
    let (mut entries, mut sources) = (Vec::new(), Vec::new());
    for (toc_index, entry) in data_entries(toc) {
        let (extent, source) = if entry.is_table_data() {
            let relation = entry.oid().and_then(|oid| relations.get(&oid)).ok_or_else(|| {
                Fault::new("table-vanished", format!("{} is gone since the snapshot was taken", entry.label()))
            })?;
            table_source(entry, relation, facts.major() >= TID_RANGE_SCAN_MAJOR)?
        } else if entry.is_large_objects() {
            let total = match large_objects {
                Some(total) => total,
                None => *large_objects.insert(catalog::large_object_facts(client).await.map_err(query_fault)?),
            };
            large_object_source(toc, entry, total)?
        } else {
            return Err(Fault::new(
                "archive-entry-unknown",
                format!(
                    "{} is data of a kind this release does not know: {}",
                    entry.label(),
                    String::from_utf8_lossy(entry.desc())
                ),
            ));
        };
        entries.push(DataEntry { toc_index, extent });
        sources.push(source);
    }
    Ok((entries, sources))
}

/// The oids of a BLOBS entry: those of the BLOB METADATA it depends on (17 on), or of all BLOB entries.
fn large_object_source(toc: &Toc, entry: &Entry, (count, bytes): (u64, u64)) -> Result<(Extent, Source), Fault> {
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

/// With chosen tables `pg_dump` leaves out the schemas they lie in, and the archive could not be restored into an
/// empty database: they are added.
fn add_schema_entries(toc: &mut Toc, owners: &BTreeMap<String, String>) {
    let mut names: Vec<Vec<u8>> = toc.entries.iter().filter_map(|entry| entry.namespace.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let at = toc.entries.iter().position(|entry| !entry.tag.as_deref().is_some_and(is_preamble)).unwrap_or(0);
    for name in names.into_iter().rev() {
        let Ok(schema) = String::from_utf8(name) else { continue };
        let present = toc.entries.iter().any(|e| e.desc() == b"SCHEMA" && e.tag.as_deref() == Some(schema.as_bytes()));
        let Some(owner) = owners.get(&schema).filter(|_| !present && schema != "public" && !schema.is_empty()) else {
            continue;
        };
        let quoted = holdfast_shared::domain::table::quote_identifier(&schema);
        let entry = Entry {
            dump_id: toc.unused_dump_id(),
            had_dumper: false,
            catalog_oid: Some(b"2615".to_vec()),
            oid: Some(b"0".to_vec()),
            tag: Some(schema.into_bytes()),
            desc: Some(b"SCHEMA".to_vec()),
            section: 2,
            defn: Some(format!("CREATE SCHEMA {quoted};\n\n\n").into_bytes()),
            drop_stmt: Some(format!("DROP SCHEMA {quoted};\n").into_bytes()),
            copy_stmt: Some(Vec::new()),
            namespace: Some(Vec::new()),
            tablespace: Some(Vec::new()),
            table_access_method: Some(Vec::new()),
            relkind: 0,
            owner: Some(owner.clone().into_bytes()),
            with_oids: Some(b"false".to_vec()),
            dependencies: Vec::new(),
            offset: Offset::NoData,
        };
        toc.entries.insert(at, entry);
    }
}

/// The settings an archive begins with.
fn is_preamble(tag: &[u8]) -> bool {
    matches!(tag, b"ENCODING" | b"STDSTRINGS" | b"SEARCHPATH")
}
