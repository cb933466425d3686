//! Chosen tables of an archive: which entries they are, and their definitions moved into a schema of their own.
//!
//! A definition is rewritten only where its grammar, as `pg_dump` writes it, has the name of a relation that moves: the
//! schema in front of that name changes. What stands in expressions, types and functions above all, means what it meant.

mod grammar;
mod moving;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::archive::sql;
use crate::archive::toc::{Entry, Offset, RELKIND_PARTITIONED_TABLE, Toc};
use crate::domain::{QualifiedName, TablePattern};

use grammar::{attached, behind};
use moving::{Moving, in_schema};

/// Schema and name, in the archive's encoding.
pub type Name = (Vec<u8>, Vec<u8>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExtractError {
    #[error("the backup has no tables {}", patterns.join(", "))]
    NoSuchTables { patterns: Vec<String> },
    #[error("{first} and {second} would have one name in one schema")]
    Collision { first: String, second: String },
    #[error("the definition of {entry} is not one that pg_dump writes: it begins with {beginning:?}")]
    Unexpected { entry: String, beginning: String },
}

/// Tables that patterns choose; numbers of entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chosen {
    /// In the archive's order; with a partitioned table come its partitions.
    pub tables: Vec<usize>,
    /// Their rows.
    pub data: Vec<usize>,
    /// Those whose rows the backup does not have.
    pub without_data: Vec<usize>,
}

/// The entries that make the chosen tables in another schema.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moved {
    pub entries: BTreeSet<usize>,
    /// What belongs to the tables and does not come with them.
    pub left_out: Vec<String>,
}

/// The tables that patterns choose.
///
/// # Errors
/// [`ExtractError::NoSuchTables`] with every pattern that chooses none.
pub fn choose(toc: &Toc, patterns: &[TablePattern]) -> Result<Chosen, ExtractError> {
    let tables: BTreeSet<Name> = of_kind(toc, b"TABLE").map(|(_, entry)| name_of(entry)).collect();
    let chooses = |pattern: &TablePattern, name: &Name| pattern.matches(&readable(name));
    let unmatched = patterns.iter().filter(|pattern| !tables.iter().any(|name| chooses(pattern, name)));
    let unmatched: Vec<String> = unmatched.map(ToString::to_string).collect();
    if !unmatched.is_empty() {
        return Err(ExtractError::NoSuchTables { patterns: unmatched });
    }
    let mut names: BTreeSet<Name> =
        tables.iter().filter(|name| patterns.iter().any(|pattern| chooses(pattern, name))).cloned().collect();
    let links: Vec<(Name, Name)> = of_kind(toc, b"TABLE ATTACH").filter_map(|(_, entry)| attached(entry)).collect();
    loop {
        let partitions = links.iter().filter(|(parent, child)| names.contains(parent) && tables.contains(child));
        let more: Vec<Name> =
            partitions.map(|(_, child)| child).filter(|child| !names.contains(child)).cloned().collect();
        if more.is_empty() {
            break;
        }
        names.extend(more);
    }
    let rows: BTreeMap<Name, usize> = of_kind(toc, b"TABLE DATA")
        .filter(|(_, entry)| entry.offset != Offset::NoData)
        .map(|(index, entry)| (name_of(entry), index))
        .collect();
    let mut chosen = Chosen::default();
    for (index, entry) in of_kind(toc, b"TABLE").filter(|(_, entry)| names.contains(&name_of(entry))) {
        chosen.tables.push(index);
        match rows.get(&name_of(entry)) {
            Some(&data) => chosen.data.push(data),
            None if is_partitioned(entry) => {}
            None => chosen.without_data.push(index),
        }
    }
    Ok(chosen)
}

/// Moves the chosen tables, and what is part of them, into `schema`, which is plain ASCII.
///
/// # Errors
/// [`ExtractError::Collision`] where two relations would have one name.
pub fn move_to(toc: &mut Toc, chosen: &Chosen, schema: &str) -> Result<Moved, ExtractError> {
    let mut moving = Moving::new(toc, chosen, schema)?;
    let mut definitions = Vec::new();
    for (index, entry) in toc.entries.iter().enumerate() {
        if let Some(definition) = moving.definition(entry)? {
            definitions.push((index, definition));
        }
    }
    let (mut moved, quoted) = moving.end();
    for (index, definition) in definitions {
        toc.entries[index].defn = Some(definition);
        moved.entries.insert(index);
    }
    for &index in &chosen.data {
        let entry = &mut toc.entries[index];
        // COPY schema.table …
        entry.copy_stmt = entry.copy_stmt.as_deref().map(|copy| in_schema(copy, &[1], &quoted));
        moved.entries.insert(index);
    }
    for &index in &moved.entries {
        let entry = &mut toc.entries[index];
        // They belong to the role that restores: the schema is for whoever asked for it.
        (entry.owner, entry.drop_stmt) = (None, None);
        entry.namespace = Some(schema.as_bytes().to_vec());
    }
    Ok(moved)
}

fn of_kind<'a>(toc: &'a Toc, desc: &'static [u8]) -> impl Iterator<Item = (usize, &'a Entry)> {
    toc.entries.iter().enumerate().filter(move |(_, entry)| entry.desc() == desc)
}

fn name_of(entry: &Entry) -> Name {
    (entry.namespace.clone().unwrap_or_default(), entry.tag.clone().unwrap_or_default())
}

fn readable((schema, name): &Name) -> QualifiedName {
    QualifiedName::new(String::from_utf8_lossy(schema), String::from_utf8_lossy(name))
}

/// Also by its definition: archives before 1.16 have no relkind.
fn is_partitioned(entry: &Entry) -> bool {
    let words = || sql::words(entry.defn.as_deref().unwrap_or_default());
    entry.relkind == RELKIND_PARTITIONED_TABLE || behind(&words(), &[b"PARTITION", b"BY"]).is_some()
}
