//! What is restored: the archive's entries as the plan wants them, and what the manifest says of each table.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use holdfast_shared::archive::script;
use holdfast_shared::archive::sql;
use holdfast_shared::archive::toc::{Entry, Offset};
use holdfast_shared::domain::manifest::{LargeObjects, Table};
use holdfast_shared::domain::{Manifest, TableDigest, TablePattern};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::rebuild::{
    Block, Extent, Item, Kind, Limits, Phase, RebuildPlan, RebuildPlanError, plan_rebuild,
};
use holdfast_shared::store::read::ArchiveSource;

pub struct Backup {
    pub archive: ArchiveSource,
    /// One an entry.
    pub items: Vec<Item>,
    /// Every entry that has data.
    pub blocks: Vec<Block>,
    /// One a block; `None` for large objects, and without a manifest.
    pub tables: Vec<Option<Table>>,
    pub large_objects: Option<LargeObjects>,
    pub manifested: bool,
    /// Tables that were left out of it, or their rows.
    pub excluded: Vec<TablePattern>,
    /// The number of the block with an entry's dump id.
    pub block_of: BTreeMap<i64, usize>,
    /// Dump ids of entries with data that are not to be restored.
    pub unchosen: BTreeSet<i32>,
    /// Every large object that the table of contents lists.
    pub listed_objects: Vec<u32>,
}

impl Backup {
    /// # Errors
    /// `backup-damaged`: archive and manifest are not of one backup.
    pub fn read(archive: ArchiveSource, manifest: Option<&Manifest>) -> Result<Self, Fault> {
        if let Some(manifest) = manifest {
            check_head(&archive, manifest)?;
        }
        let entries = &archive.toc.entries;
        let in_utf8 = archive.toc.encoding().as_deref() == Some("UTF8");
        let items: Vec<Item> = entries
            .iter()
            .map(|entry| {
                let (phase, kind) = script::classify(entry);
                Item { id: entry.dump_id, phase, kind, dependencies: script::dependencies(entry) }
            })
            .collect();
        let mut listed: BTreeMap<u64, &Table> =
            manifest.iter().flat_map(|manifest| &manifest.tables).map(|table| (table.offset, table)).collect();
        let (mut blocks, mut tables, mut block_of) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (index, entry) in entries.iter().enumerate() {
            // An entry without data in the archive: it was left out by --exclude-table-data or the like.
            if items[index].phase != Phase::Data || entry.offset == Offset::NoData {
                continue;
            }
            let offset = if let Offset::Set(offset) = entry.offset { Some(offset) } else { None };
            let table = offset.filter(|_| entry.is_table_data()).and_then(|offset| listed.remove(&offset));
            if entry.is_table_data() {
                check_entry(entry, manifest.is_some(), table, in_utf8)?;
            }
            let pieces = table.map(|table| table.pieces.as_slice()).unwrap_or_default();
            block_of.insert(i64::from(entry.dump_id), blocks.len());
            blocks.push(Block {
                item: index,
                offset,
                length: table.map(|table| table.length),
                pieces: pieces.iter().map(|p| Extent { offset: p.offset, length: p.length }).collect(),
            });
            tables.push(table.cloned());
        }
        if let Some(table) = listed.values().next() {
            return Err(Fault::new(
                "backup-damaged",
                format!("the manifest lists {}.{}, and the archive has no such data", table.schema, table.name),
            ));
        }
        let listed_objects =
            script::large_objects(&archive.toc).map_err(|error| Fault::from_error("archive-unexpected", &error))?;
        let selection = manifest.map(|manifest| &manifest.selection);
        let large_objects = manifest.and_then(|manifest| manifest.large_objects.clone());
        Ok(Self {
            items,
            blocks,
            tables,
            large_objects,
            manifested: manifest.is_some(),
            excluded: selection.into_iter().flat_map(|s| [&s.exclude, &s.exclude_data]).flatten().cloned().collect(),
            block_of,
            unchosen: BTreeSet::new(),
            listed_objects,
            archive,
        })
    }

    /// In which order, and by how many sessions, it is restored.
    ///
    /// # Errors
    /// `backup-damaged`: the archive contradicts itself, or is cut off.
    pub fn plan(&self, workers: usize) -> Result<RebuildPlan, Fault> {
        let ArchiveSource { data_start, size_bytes, key, .. } = &self.archive;
        let data = Extent { offset: *data_start, length: size_bytes.saturating_sub(*data_start) };
        plan_rebuild(&self.items, &self.blocks, &Limits { workers, data }).map_err(|error| {
            let fault = Fault::from_error("backup-damaged", &error).with_context(key);
            let RebuildPlanError::Misplaced { id } = error else { return fault };
            let entry = self.archive.toc.entries.iter().find(|entry| entry.dump_id == id);
            let table = entry.map_or_else(String::new, |entry| format!("entry {id} is {}; ", entry.label()));
            fault.hint(format!("{table}the archive may be cut off: it has {size_bytes} bytes"))
        })
    }

    pub fn entry(&self, block: usize) -> &Entry {
        &self.archive.toc.entries[self.blocks[block].item]
    }

    /// For messages.
    pub fn name(&self, block: usize) -> String {
        let entry = self.entry(block);
        if entry.is_large_objects() { "large objects".to_owned() } else { entry.label() }
    }

    /// Whether the data are `INSERT` statements rather than rows.
    pub fn is_inserts(&self, block: usize) -> bool {
        is_inserts(self.entry(block))
    }

    /// The relation that the rows go into, and its columns as far as the archive names them, quoted.
    pub fn relation(&self, block: usize) -> Result<(Cow<'_, [u8]>, &[u8]), Fault> {
        let entry = self.entry(block);
        if is_inserts(entry) {
            let root = entry.defn.as_deref().and_then(sql::partition_root);
            let own = || Cow::from(script::qualified(entry));
            return Ok((root.map_or_else(own, Cow::from), &[]));
        }
        let statement = entry.copy_stmt.as_deref().unwrap_or_default();
        let (relation, columns) = sql::parse_copy(statement).ok_or_else(|| unexpected_copy(entry))?;
        Ok((relation.into(), columns))
    }

    /// Whether the rows go into the root of the table's partition tree, to be sent to whatever partition it is there.
    pub fn via_root(&self, block: usize) -> Result<bool, Fault> {
        let entry = self.entry(block);
        let (relation, _) = self.relation(block)?;
        let names: Vec<Vec<u8>> = sql::words(&relation).iter().step_by(2).map(|word| sql::unquoted(word)).collect();
        let own = [&entry.namespace, &entry.tag].map(|name| name.clone().unwrap_or_default());
        Ok(names != own)
    }

    /// Whether the table is made by a definition of the archive, as an ordinary one.
    pub fn is_created(&self, block: usize) -> bool {
        let data = self.entry(block);
        let created = |id: &i32| {
            let of_id = |item: &Item| item.id == *id && item.kind == Kind::Table && item.phase == Phase::Before;
            let entry = self.items.iter().position(of_id).map(|at| &self.archive.toc.entries[at]);
            entry.is_some_and(|entry| entry.namespace == data.namespace && entry.tag == data.tag)
        };
        self.items[self.blocks[block].item].dependencies.iter().any(created)
    }

    /// The statement that takes the rows.
    pub fn copy_in_sql(&self, block: usize) -> Result<Vec<u8>, Fault> {
        let (relation, columns) = self.relation(block)?;
        let list = if columns.is_empty() { Vec::new() } else { [b" (", columns, b")"].concat() };
        Ok([b"COPY ", &relation[..], &list, b" FROM STDIN"].concat())
    }

    /// What loading and reading the table have to come to.
    pub fn expected(&self, block: usize) -> Option<TableDigest> {
        let table = self.tables[block].as_ref()?;
        Some(TableDigest { rows: table.rows, bytes: table.bytes, fingerprint: table.fingerprint })
    }
}

/// The definitions are those that the manifest was written for, as the rows will have to be.
fn check_head(archive: &ArchiveSource, manifest: &Manifest) -> Result<(), Fault> {
    let checksum = manifest.artifacts.get("dump").and_then(|artifact| artifact.head_checksum.as_ref());
    let same = checksum.is_none_or(|checksum| *checksum == archive.head_checksum);
    if same && archive.toc.fingerprint() == manifest.schema_fingerprint {
        return Ok(());
    }
    Err(Fault::new("backup-damaged", "the archive's table of contents is not what the manifest says")
        .hint("restore another backup; the object's versions may hold an undamaged one"))
}

fn check_entry(entry: &Entry, manifested: bool, table: Option<&Table>, in_utf8: bool) -> Result<(), Fault> {
    if !is_inserts(entry) && sql::parse_copy(entry.copy_stmt.as_deref().unwrap_or_default()).is_none() {
        return Err(unexpected_copy(entry));
    }
    let matches = match table {
        None => !manifested,
        // The manifest's names are in UTF-8; others are not compared.
        Some(table) => {
            let tag = entry.tag.as_deref().unwrap_or_default();
            tag == table.name.as_bytes() || !in_utf8 && !tag.is_ascii()
        }
    };
    if matches {
        return Ok(());
    }
    Err(Fault::new("backup-damaged", format!("the manifest does not say what the archive has of {}", entry.label())))
}

fn is_inserts(entry: &Entry) -> bool {
    entry.copy_stmt.as_deref().unwrap_or_default().is_empty()
}

fn unexpected_copy(entry: &Entry) -> Fault {
    let statement = String::from_utf8_lossy(entry.copy_stmt.as_deref().unwrap_or_default()).into_owned();
    Fault::new(
        "archive-unexpected",
        format!("the COPY statement of {} is not one of pg_dump's: {statement}", entry.label()),
    )
}
