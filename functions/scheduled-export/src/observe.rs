//! Looks at everything the plan depends on: the server, what may be read, the snapshot, the table of contents.

mod locks;
mod rights;
mod schemas;
mod setback;

use std::collections::BTreeMap;

use holdfast_shared::archive::codec::Compression;
use holdfast_shared::archive::toc::{Entry, Offset, Toc};
use holdfast_shared::config::ExportConfig;
use holdfast_shared::domain::manifest::Selection;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::export::DataEntry;
use holdfast_shared::postgres::catalog::{self, RelationFacts, ServerFacts};
use holdfast_shared::postgres::connect::{Connector, Session};
use holdfast_shared::postgres::pg_dump::PgDump;
use holdfast_shared::postgres::session::{Client, query_fault, session_settings};

use crate::large_objects::large_object_source;
use crate::read::{Source, table_source};

pub use locks::name_blockers;
use locks::{lock_tables, or_locked};
use rights::{check_rights, check_selection};
use schemas::add_schema_entries;
use setback::{Setback, explain_pg_dump};

/// From this version on a range of ctids is read without scanning the table.
const TID_RANGE_SCAN_MAJOR: u32 = 14;
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

fn data_entries(toc: &Toc) -> impl Iterator<Item = (usize, &Entry)> {
    toc.entries.iter().enumerate().filter(|(_, entry)| entry.had_dumper && entry.offset == Offset::NotSet)
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
