//! In what order a database is rebuilt from an archive: definitions, data in tasks for several streams, and a graph
//! of what can run side by side after it. The archive may be hostile: every number is checked before it is used.

mod data;
mod graph;
mod schedule;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use data::{Content, DataTask};
use data::{data_tasks, place, table_sizes};
pub use graph::{Graph, Job, Step};
use graph::{Loading, graph};
pub use schedule::{Next, Schedule};

/// When an entry is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A setting of the session, or the database itself.
    Never,
    /// One after the other, in the archive's order.
    Before,
    /// After [`Phase::Before`], before the first row.
    WithData,
    Data,
    /// Side by side, as dependencies and locks allow.
    After,
    /// A comment or label: with what it belongs to.
    WithItsObject,
    /// One after the other, once everything else is there.
    Privileges,
    /// What runs queries (materialized views), and statistics.
    Last,
    /// What reacts to definitions (event triggers): it could change what was restored. One after the other.
    AfterProof,
}

/// What an entry is to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Table,
    TableData,
    /// Locks its table against writes only: several may be built at once.
    Index,
    /// A key: an index that wants its table for itself.
    Key,
    Other,
}

/// An entry of the table of contents, as far as order is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub id: i32,
    pub phase: Phase,
    pub kind: Kind,
    pub dependencies: Vec<i32>,
}

/// A range of the archive's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
}

impl Extent {
    fn end(self) -> Option<u64> {
        self.offset.checked_add(self.length)
    }
}

/// The data of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub item: usize,
    /// `None` where the archive was written to a pipe.
    pub offset: Option<u64>,
    /// Known from a manifest, else up to the next block.
    pub length: Option<u64>,
    /// Runs of whole rows that can be read on their own; empty: the block only as a whole.
    pub pieces: Vec<Extent>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebuildPlan {
    pub before: Vec<usize>,
    pub with_data: Vec<usize>,
    /// Those of the largest tables first.
    pub data: Vec<DataTask>,
    /// All of `data`, and what is built on it.
    pub build: Graph,
    /// Comments, labels and privileges, in this order.
    pub privileges: Vec<usize>,
    pub last: Graph,
    /// Once all is proved, in this order.
    pub after_proof: Vec<usize>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RebuildPlanError {
    #[error("two entries have the dump id {id}")]
    DuplicateId { id: i32 },
    #[error("entries depend on each other in a circle, {id} among them")]
    Circle { id: i32 },
    #[error("the data of entry {id} does not lie within the archive, or in that of another entry")]
    Misplaced { id: i32 },
}

/// Where data lies and how many streams read it.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub workers: usize,
    /// From the first data block to the archive's end.
    pub data: Extent,
}

/// Decides what is done when: nothing is left to choose when the plan is carried out.
///
/// # Errors
/// [`RebuildPlanError`]: the archive contradicts itself.
pub fn plan_rebuild(items: &[Item], blocks: &[Block], limits: &Limits) -> Result<RebuildPlan, RebuildPlanError> {
    let mut by_id = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        if by_id.insert(item.id, index).is_some() {
            return Err(RebuildPlanError::DuplicateId { id: item.id });
        }
    }
    let placed = place(items, blocks, limits)?;
    let mut plan = RebuildPlan { data: data_tasks(blocks, placed.as_deref(), limits), ..RebuildPlan::default() };
    let (mut after, mut comments, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let mut data_seen = false;
    for (index, item) in items.iter().enumerate() {
        data_seen |= matches!(item.phase, Phase::Data | Phase::WithData | Phase::After);
        match item.phase {
            Phase::Never | Phase::Data => {}
            Phase::Before => plan.before.push(index),
            Phase::WithItsObject if !data_seen => plan.before.push(index),
            Phase::WithData => plan.with_data.push(index),
            Phase::After => after.push(index),
            // A comment wants its table for a moment, and the building of an index has it for long.
            Phase::WithItsObject => comments.push(index),
            Phase::Privileges => plan.privileges.push(index),
            Phase::Last => last.push(index),
            Phase::AfterProof => plan.after_proof.push(index),
        }
    }
    let sizes = table_sizes(items, blocks, placed.as_deref());
    plan.privileges.splice(0..0, comments);
    let loading = Loading { tasks: &plan.data, blocks };
    plan.build = graph(items, &by_id, &sizes, &after, Some(&loading))?;
    plan.last = graph(items, &by_id, &sizes, &last, None)?;
    Ok(plan)
}
