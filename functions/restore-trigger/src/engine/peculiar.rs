//! Blocks whose table is not an empty one that this restore has made.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_shared::archive::sql;
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::copy::RawSession;

use crate::engine::database::first_column;
use crate::engine::source::Backup;

#[derive(Debug, Default)]
pub struct Peculiar {
    /// Could not be made, and `continue_on_error` went on: there is nothing to load into.
    pub missing: BTreeSet<usize>,
    /// Rows that `CREATE EXTENSION` has put into a table of the extension's own. Where there is no manifest to say which
    /// rows are the user's, the proof counts all.
    pub before: BTreeMap<usize, u64>,
}

impl Peculiar {
    /// Looks once the definitions are there; `failed`: some of them are not.
    pub async fn look(session: &mut RawSession, backup: &Backup, failed: bool) -> Result<Self, Fault> {
        let mut found = Self::default();
        for block in (0..backup.blocks.len()).filter(|&block| backup.entry(block).is_table_data()) {
            let of_extension = !backup.manifested && !backup.is_created(block);
            if !failed && !of_extension {
                continue;
            }
            let (relation, _) = backup.relation(block)?;
            if failed && is_missing(session, &relation).await? {
                found.missing.insert(block);
            } else if of_extension {
                let sql =
                    [b"COPY (SELECT pg_catalog.count(*) FROM ONLY ".as_slice(), &relation, b") TO STDOUT"].concat();
                found.before.insert(block, number(&first_column(session, &sql).await?));
            }
        }
        Ok(found)
    }
}

async fn is_missing(session: &mut RawSession, relation: &[u8]) -> Result<bool, Fault> {
    let literal = sql::literal(relation);
    let sql = [b"COPY (SELECT 1 WHERE pg_catalog.to_regclass(".as_slice(), &literal, b") IS NULL) TO STDOUT"].concat();
    Ok(!first_column(session, &sql).await?.is_empty())
}

/// The number in the only row.
pub fn number(rows: &[Vec<u8>]) -> u64 {
    rows.first().and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()).unwrap_or(0)
}
