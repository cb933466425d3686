//! Chosen tables into a schema of their own, beside the live ones: there whole and proved, or not at all.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use holdfast_shared::archive::extract::{self, Chosen, ExtractError};
use holdfast_shared::domain::TablePattern;
use holdfast_shared::domain::table::quote_identifier;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::rebuild::Phase;
use jiff::Timestamp;
use serde_json::json;

use crate::engine::source::Backup;
use crate::engine::{Engine, Options, Origin, Receipt, definitions, unfinished};

/// So many of a backup's tables are named where it has not those that were asked for.
const TABLES_TOLD: usize = 8;

impl Engine {
    /// Makes the schema, with the tables, their rows, defaults, keys, constraints and indexes.
    pub(super) async fn tables_into_schema(
        &self,
        origin: &Origin,
        (database, schema): (&str, &str),
        patterns: &[TablePattern],
        options: Options,
    ) -> Result<Receipt, Fault> {
        let started = Instant::now();
        let mut backup = self.read(origin).await?;
        let chosen = choose(&backup, patterns)?;
        let moved = extract::move_to(&mut backup.archive.toc, &chosen, schema);
        let moved = moved.map_err(|error| extract_fault(&error, &backup))?;
        backup.narrow(&moved.entries);
        definitions::check(&backup)?;
        let backup = Arc::new(backup);
        let session = self.connector(database)?.session().await?;
        unfinished::end_own_sessions(&session.client).await?;
        self.create_schema(database, schema).await?;
        let options = Options { own_database: false, ..options };
        let id = origin.manifest.as_ref().map(|manifest| manifest.timestamp);
        let comment = json!({"holdfast": "tables", "of_backup": id, "at": Timestamp::now()}).to_string();
        let work = async {
            let receipt = self.fill(&backup, database, options, started).await?;
            self.finish_schema(database, schema, &comment).await?;
            Ok(receipt)
        };
        match self.in_time(schema, work).await {
            Ok(mut receipt) => {
                receipt.schema = Some(schema.to_owned());
                receipt.left_out.splice(0..0, moved.left_out);
                receipt.notes.push(format!(
                    "{schema} and all in it belong to the restoring role, without privileges for others"
                ));
                receipt.seconds.total = started.elapsed().as_secs_f64();
                Ok(receipt)
            }
            Err(fault) => {
                tracing::info!(database, schema, code = fault.code, "dropping the unfinished schema");
                if let Err(left) = self.discard_schema(database, schema).await {
                    tracing::warn!(database, schema, error = %left, "the unfinished schema could not be dropped");
                }
                Err(missing_definition(fault))
            }
        }
    }
}

/// The chosen tables of a backup.
pub(super) fn choose(backup: &Backup, patterns: &[TablePattern]) -> Result<Chosen, Fault> {
    definitions::check(backup)?;
    let chosen = extract::choose(&backup.archive.toc, patterns).map_err(|error| extract_fault(&error, backup))?;
    for block in 0..backup.blocks.len() {
        // Such rows say themselves where they go.
        if chosen.data.contains(&backup.blocks[block].item) && (backup.is_inserts(block) || backup.via_root(block)?) {
            let message = format!("the rows of {} are not plain COPY data of that table", backup.name(block));
            return Err(Fault::new("restore-source-unfit", message)
                .hint("the archive was made with --inserts or --load-via-partition-root: use mode new_database"));
        }
    }
    Ok(chosen)
}

fn extract_fault(error: &ExtractError, backup: &Backup) -> Fault {
    match error {
        ExtractError::NoSuchTables { .. } => {
            let tables: Vec<String> =
                backup.tables.iter().flatten().map(|t| format!("{}.{}", t.schema, t.name)).collect();
            let some = tables.iter().take(TABLES_TOLD).cloned().collect::<Vec<_>>().join(", ");
            let there_are = match tables.len() {
                0 => "the manifest lists the backup's tables".to_owned(),
                all if all <= TABLES_TOLD => format!("it has {some}"),
                all => format!("it has {some} and {} more, which its manifest lists", all - TABLES_TOLD),
            };
            Fault::from_error("restore-tables-not-found", error)
                .hint(format!("{there_are}; upper and lower case count"))
        }
        ExtractError::Collision { .. } => Fault::from_error("restore-tables-collide", error)
            .hint("restore one of them at a time: rename the schema in between, or ask with another backup's id"),
        ExtractError::Unexpected { .. } => Fault::from_error("archive-unexpected", error),
    }
}

/// The live database has not all that the definitions of another time need.
fn missing_definition(fault: Fault) -> Fault {
    let absent = ["(SQLSTATE 42704)", "(SQLSTATE 42883)", "(SQLSTATE 3F000)", "(SQLSTATE 42P01)"];
    if fault.code == "restore-object-failed" && absent.iter().any(|state| fault.message.contains(state)) {
        return Fault::new("restore-definition-missing", fault.message)
            .hint("the live database does not have it: restore into a new database, or make it first");
    }
    fault
}

/// The tables with rows, quoted, for SQL in UTF-8.
pub(super) fn relations(backup: &Backup) -> Vec<String> {
    let text = |bytes: &Option<Vec<u8>>| String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()).into_owned();
    let entries = (0..backup.blocks.len()).map(|block| backup.entry(block)).filter(|entry| entry.is_table_data());
    entries
        .map(|entry| format!("{}.{}", quote_identifier(&text(&entry.namespace)), quote_identifier(&text(&entry.tag))))
        .collect()
}

impl Backup {
    pub(super) fn proved_by(&self) -> &'static str {
        if self.manifested { "fingerprints" } else { "row counts" }
    }

    /// Leaves these entries, and nothing else, to be restored.
    pub(super) fn narrow(&mut self, entries: &BTreeSet<usize>) {
        self.bound_blocks();
        for (index, item) in self.items.iter_mut().enumerate() {
            if !entries.contains(&index) {
                item.phase = Phase::Never;
            }
        }
        let (blocks, tables) = (std::mem::take(&mut self.blocks), std::mem::take(&mut self.tables));
        self.block_of.clear();
        for (block, table) in blocks.into_iter().zip(tables) {
            if entries.contains(&block.item) {
                self.block_of.insert(i64::from(self.items[block.item].id), self.blocks.len());
                self.blocks.push(block);
                self.tables.push(table);
            } else {
                self.unchosen.insert(self.items[block.item].id);
            }
        }
        self.large_objects = None;
    }

    /// A block whose length no manifest says ends where the next one begins, also where that one is not wanted.
    fn bound_blocks(&mut self) {
        let mut starts: Vec<u64> = self.blocks.iter().filter_map(|block| block.offset).collect();
        starts.sort_unstable();
        for block in &mut self.blocks {
            let Some(offset) = block.offset.filter(|_| block.length.is_none()) else { continue };
            let next = starts.iter().find(|&&start| start > offset);
            block.length = Some(next.copied().unwrap_or(self.archive.size_bytes).saturating_sub(offset));
        }
    }
}
