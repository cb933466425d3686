//! Looks at everything the plan depends on: the server, what may be read, the snapshot, the table of contents.

use std::collections::BTreeMap;

use holdfast_shared::archive::codec::Compression;
use holdfast_shared::archive::toc::{Entry, Offset, Toc};
use holdfast_shared::config::ExportConfig;
use holdfast_shared::domain::manifest::Selection;
use holdfast_shared::domain::{QualifiedName, TablePattern};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::plan::export::DataEntry;
use holdfast_shared::postgres::catalog::{self, Blocker, RelationFacts, ServerFacts};
use holdfast_shared::postgres::connect::{ConnectError, Connector, Session};
use holdfast_shared::postgres::pg_dump::{PgDump, PgDumpError};
use holdfast_shared::postgres::session::{Client, LOCK_NOT_AVAILABLE, QueryError, query_fault, session_settings};

use crate::large_objects::large_object_source;
use crate::read::{Source, table_source};

/// From this version on a range of ctids is read without scanning the table.
const TID_RANGE_SCAN_MAJOR: u32 = 14;
/// Tables named in one LOCK statement.
const LOCK_BATCH: usize = 500;
const LISTED: usize = 20;
const UNDEFINED_TABLE: &str = "42P01";
/// How often a snapshot is taken anew because definitions changed before they were locked.
const OBSERVATIONS: usize = 3;

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

/// Why an observation came to nothing.
enum Setback {
    Fault(Fault),
    /// Someone changed a definition between the snapshot and the lock: a new snapshot sees what came of it.
    Overtaken(Fault),
}

impl From<Fault> for Setback {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<PgDumpError> for Setback {
    fn from(error: PgDumpError) -> Self {
        Self::Fault(error.into())
    }
}

impl From<ConnectError> for Setback {
    fn from(error: ConnectError) -> Self {
        Self::Fault(error.into())
    }
}

/// Returns what was seen, and the session that holds the snapshot and a lock on every table that is read.
pub async fn observe(
    config: &ExportConfig,
    selection: &Selection,
    connector: &Connector,
) -> Result<(Observed, Session), Fault> {
    for _ in 1..OBSERVATIONS {
        match Box::pin(observe_once(config, selection, connector)).await {
            Ok(observed) => return Ok(observed),
            Err(Setback::Fault(fault)) => return Err(fault),
            Err(Setback::Overtaken(fault)) => {
                tracing::info!(reason = %fault, "a definition changed before it was locked: looking again");
            }
        }
    }
    Box::pin(observe_once(config, selection, connector)).await.map_err(|setback| match setback {
        Setback::Fault(fault) | Setback::Overtaken(fault) => fault,
    })
}

async fn observe_once(
    config: &ExportConfig,
    selection: &Selection,
    connector: &Connector,
) -> Result<(Observed, Session), Setback> {
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
        )
        .into());
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
        Err(error) => return Err(explain_pg_dump(client, &facts, error).await),
    };
    let compression = config.compression.unwrap_or_else(|| Compression::default_for(facts.major(), toc.header.version));
    if !compression.fits(toc.header.version) {
        return Err(Fault::new(
            "compression-unsupported",
            format!("archives of version {} cannot be compressed with {compression}", toc.header.version),
        )
        .hint("set COMPRESSION=gzip, or use a pg_dump of version 16 or later")
        .into());
    }

    let oids: Vec<u32> = data_entries(&toc).filter_map(|(_, entry)| entry.oid()).collect();
    let relations = or_locked(client, catalog::relation_facts(client, &oids, facts.block_size)).await?;
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

/// What `pg_dump`'s own words mean. It waits for locks, too: whoever stands in the way is named.
async fn explain_pg_dump(client: &Client, facts: &ServerFacts, error: PgDumpError) -> Setback {
    let PgDumpError::Failed { message } = &error else { return error.into() };
    let says = |any: &[&str]| any.iter().any(|words| message.contains(words));
    let fault = |code| Fault::from_error(code, &error);
    // Up to 15 it waits for locks by a statement timeout; the server's words may be in any language.
    if says(&["lock timeout", "statement timeout", "could not obtain lock", "LOCK TABLE"]) && !says(&["does not exist"])
    {
        let blockers = catalog::blockers(client).await.unwrap_or_default();
        if !blockers.is_empty() || says(&["lock timeout", "statement timeout", "could not obtain lock"]) {
            return lock_fault(&blockers, &chain(&error)).into();
        }
    }
    if says(&["permission denied"]) {
        let hint = format!("grant SELECT on it to {}, and USAGE on its schema", facts.role);
        return fault("table-not-readable").hint(hint).into();
    }
    if says(&["too many connections", "connection slots are reserved", "too many clients"]) {
        return fault("database-too-many-connections")
            .hint("pg_dump needs a connection beside the workers': raise max_connections or the role's limit")
            .into();
    }
    if says(&["certificate"]) {
        return fault("database-tls-failed").into();
    }
    if says(&[
        "connection to server",
        "server closed the connection",
        "could not receive data",
        "terminating connection",
    ]) {
        return fault("database-connection-lost").hint("the next run starts afresh").into();
    }
    if says(&["does not exist", "cache lookup failed", "could not open relation"]) {
        return Setback::Overtaken(error.into());
    }
    error.into()
}

fn lock_fault(blockers: &[Blocker], otherwise: &str) -> Fault {
    let described: Vec<String> =
        blockers.iter().map(|blocker| format!("{}: {}", blocker.table, blocker.description)).collect();
    let message = if described.is_empty() { otherwise.to_owned() } else { described.join("; ") };
    Fault::new("table-locked", format!("a table stayed locked longer than the lock timeout: {message}"))
        .hint("end that session, or raise LOCK_TIMEOUT_MS")
}

/// Says who holds the lock that a session met while it read; asked by a session of its own, because that one's
/// transaction is over.
pub async fn name_blockers(connector: &Connector, fault: Fault) -> Fault {
    if fault.code != "table-locked" {
        return fault;
    }
    let Ok(session) = connector.session().await else { return fault };
    let blockers = catalog::blockers(&session.client).await.unwrap_or_default();
    if blockers.is_empty() { fault } else { lock_fault(&blockers, "").with_context(&fault.message) }
}

/// Runs what may meet a lock, in a savepoint, so that the session can still be asked who holds it.
async fn or_locked<T>(client: &Client, work: impl Future<Output = Result<T, QueryError>>) -> Result<T, Setback> {
    client.batch_execute("SAVEPOINT locks").await.map_err(query_fault)?;
    match work.await {
        Ok(result) => {
            client.batch_execute("RELEASE SAVEPOINT locks").await.map_err(query_fault)?;
            Ok(result)
        }
        Err(error) => {
            let state = |code| error.code().is_some_and(|state| state.code() == code);
            if state(LOCK_NOT_AVAILABLE) {
                let _ = client.batch_execute("ROLLBACK TO SAVEPOINT locks").await;
                let blockers = catalog::blockers(client).await.unwrap_or_default();
                let fault = lock_fault(&blockers, &chain(&error));
                // `pg_dump` has these locks: who still waits for one waits for us.
                let queued = blockers.iter().all(|blocker| !blocker.holds);
                return Err(if queued { Setback::Overtaken(fault) } else { Setback::Fault(fault) });
            }
            // Gone before `pg_dump` could lock it.
            let gone = state(UNDEFINED_TABLE);
            let fault = query_fault(error);
            Err(if gone { Setback::Overtaken(fault) } else { Setback::Fault(fault) })
        }
    }
}

fn data_entries(toc: &Toc) -> impl Iterator<Item = (usize, &Entry)> {
    toc.entries.iter().enumerate().filter(|(_, entry)| entry.had_dumper && entry.offset == Offset::NotSet)
}

/// Our own locks, taken while `pg_dump` still holds its own.
async fn lock_tables(client: &Client, relations: &BTreeMap<u32, RelationFacts>) -> Result<(), Setback> {
    let (exact, inexact): (Vec<_>, Vec<_>) = relations
        .iter()
        .filter(|(_, relation)| matches!(relation.kind, 'r' | 'p'))
        .partition(|(_, relation)| relation.name_is_exact);
    for batch in exact.chunks(LOCK_BATCH) {
        let names: Vec<String> = batch.iter().map(|(_, relation)| format!("ONLY {}", relation.name.quoted())).collect();
        let sql = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
        or_locked(client, client.batch_execute(&sql)).await?;
    }
    for (oid, _) in inexact {
        let sql = format!(
            "DO $lock$ BEGIN EXECUTE pg_catalog.format('LOCK TABLE ONLY %s IN ACCESS SHARE MODE', {oid}::pg_catalog.regclass); END $lock$"
        );
        or_locked(client, client.batch_execute(&sql)).await?;
    }
    Ok(())
}

async fn data_sources(
    client: &Client,
    facts: &ServerFacts,
    toc: &Toc,
    relations: &BTreeMap<u32, RelationFacts>,
) -> Result<(Vec<DataEntry>, Vec<Source>), Setback> {
    let mut large_objects: Option<(u64, u64)> = None;
    let (mut entries, mut sources) = (Vec::new(), Vec::new());
    for (toc_index, entry) in data_entries(toc) {
        let (extent, source) = if entry.is_table_data() {
            let relation = entry.oid().and_then(|oid| relations.get(&oid)).ok_or_else(|| {
                let what = format!("{} is gone since the snapshot was taken", entry.label());
                Setback::Overtaken(Fault::new("table-vanished", what))
            })?;
            let (extent, mut source) = table_source(entry, relation, facts.major() >= TID_RANGE_SCAN_MAJOR)?;
            if !source.columns_are_utf8(&facts.encoding) {
                let columns =
                    catalog::decode_text(client, source.columns(), &facts.encoding).await.map_err(query_fault)?;
                source.name_columns(&columns);
            }
            (extent, Source::Table(source))
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
            )
            .into());
        };
        entries.push(DataEntry { toc_index, extent });
        sources.push(source);
    }
    Ok((entries, sources))
}

/// With chosen tables `pg_dump` leaves out the schemas they lie in, and the archive could not be restored into an
/// empty database: they are added.
fn add_schema_entries(toc: &mut Toc, owners: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut names: Vec<Vec<u8>> = toc.entries.iter().filter_map(|entry| entry.namespace.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let at = toc.entries.iter().position(|entry| !entry.tag.as_deref().is_some_and(is_preamble)).unwrap_or(0);
    for schema in names.into_iter().rev() {
        let present = toc.entries.iter().any(|e| e.desc() == b"SCHEMA" && e.tag.as_ref() == Some(&schema));
        let Some(owner) = owners.get(&schema).filter(|_| !present && schema != b"public" && !schema.is_empty()) else {
            continue;
        };
        let mut quoted = vec![b'"'];
        for &byte in &schema {
            quoted.push(byte);
            if byte == b'"' {
                quoted.push(byte);
            }
        }
        quoted.push(b'"');
        let entry = Entry {
            dump_id: toc.unused_dump_id(),
            had_dumper: false,
            catalog_oid: Some(b"2615".to_vec()),
            oid: Some(b"0".to_vec()),
            tag: Some(schema),
            desc: Some(b"SCHEMA".to_vec()),
            section: 2,
            defn: Some([b"CREATE SCHEMA ", quoted.as_slice(), b";\n\n\n"].concat()),
            drop_stmt: Some([b"DROP SCHEMA ", quoted.as_slice(), b";\n"].concat()),
            // Null, not empty: a reader would set an empty name.
            copy_stmt: None,
            namespace: None,
            tablespace: None,
            table_access_method: None,
            relkind: 0,
            owner: Some(owner.clone()),
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
