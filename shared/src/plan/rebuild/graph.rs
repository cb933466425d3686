//! What can run side by side: loading and building as one graph of steps.

use std::collections::{BTreeMap, BTreeSet};

use super::schedule::stuck;
use super::{Block, Content, DataTask, Item, Kind, RebuildPlanError};

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// A task of [`RebuildPlan::data`].
    Data(usize),
    /// Nothing: all data are there.
    Loaded,
    /// An entry.
    Entry(usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub job: Job,
    /// Steps of the same graph.
    pub waits_for: Vec<usize>,
    /// Tables it locks against everything else that needs them.
    pub(super) locks: Vec<i32>,
    pub(super) needs: Vec<i32>,
    /// Bytes that it has to go through: of what is ready, the costliest is begun first.
    pub(super) cost: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    pub steps: Vec<Step>,
}

/// What a graph begins with.
pub(super) struct Loading<'a> {
    pub(super) tasks: &'a [DataTask],
    pub(super) blocks: &'a [Block],
}

impl Loading<'_> {
    /// The tasks that load each table, by the dump ids of table and data.
    fn by_table(&self, items: &[Item], tables: &BTreeMap<i32, i32>) -> BTreeMap<i32, BTreeSet<usize>> {
        let mut by_table: BTreeMap<i32, BTreeSet<usize>> = BTreeMap::new();
        for (step, task) in self.tasks.iter().enumerate() {
            let blocks = match &task.content {
                Content::Blocks(blocks) => blocks.as_slice(),
                Content::Pieces { block, .. } => std::slice::from_ref(block),
            };
            for block in blocks {
                let data = items[self.blocks[*block].item].id;
                for id in tables.get(&data).into_iter().chain([&data]) {
                    by_table.entry(*id).or_default().insert(step);
                }
            }
        }
        by_table
    }
}

/// A graph of the entries `members`, behind the data tasks where it begins with them.
///
/// # Errors
/// [`RebuildPlanError::Circle`].
pub(super) fn graph(
    items: &[Item],
    by_id: &BTreeMap<i32, usize>,
    sizes: &BTreeMap<i32, u64>,
    members: &[usize],
    loading: Option<&Loading<'_>>,
) -> Result<Graph, RebuildPlanError> {
    let tables = data_of_tables(items);
    // A table and its data count as one.
    let table_of = |id: i32| tables.get(&id).copied().unwrap_or(id);
    let of_table = |at: usize| matches!(items[at].kind, Kind::Table | Kind::TableData);
    let known = |item: &Item| -> Vec<(i32, usize)> {
        item.dependencies.iter().filter_map(|id| by_id.get(id).map(|&at| (*id, at))).collect()
    };
    let loaded_by = loading.map(|loading| loading.by_table(items, &tables)).unwrap_or_default();
    // What needs its table and nothing else is built as soon as that is loaded. A function that an index calls may
    // read other tables, and a partitioned table's rows are loaded under other names: such have to wait for all data.
    let early = |item: &Item| {
        let known = known(item);
        let only_tables = known.iter().all(|(id, at)| of_table(*at) && loaded_by.contains_key(id));
        matches!(item.kind, Kind::Index | Kind::Key) && only_tables && !known.is_empty()
    };
    let mut steps = Vec::with_capacity(members.len());
    if let Some(loading) = loading {
        let built_on: BTreeSet<usize> = members
            .iter()
            .filter(|&&index| early(&items[index]))
            .flat_map(|&index| known(&items[index]))
            .flat_map(|(id, _)| loaded_by[&id].iter().copied())
            .collect();
        for (task, DataTask { extent, content }) in loading.tasks.iter().enumerate() {
            // Pieces of a table on which nothing is built fill what is left of the streams' time at the end.
            let cost = match content {
                Content::Pieces { block, .. } if built_on.contains(&task) => {
                    sizes.get(&items[loading.blocks[*block].item].id).copied().unwrap_or(extent.length)
                }
                _ => extent.length,
            };
            steps.push(Step { job: Job::Data(task), waits_for: vec![], locks: vec![], needs: vec![], cost });
        }
        let waits_for = (0..steps.len()).collect();
        steps.push(Step { job: Job::Loaded, waits_for, locks: vec![], needs: vec![], cost: u64::MAX });
    }
    let first = steps.len();
    let position: BTreeMap<usize, usize> = members.iter().enumerate().map(|(at, &item)| (item, first + at)).collect();
    for &index in members {
        let item = &items[index];
        let known = known(item);
        let locking = item.kind != Kind::Index;
        let mut waits_for: BTreeSet<usize> = known.iter().filter_map(|(_, at)| position.get(at).copied()).collect();
        if early(item) {
            waits_for.extend(known.iter().flat_map(|(id, _)| &loaded_by[id]));
        } else if loading.is_some() {
            waits_for.insert(first - 1);
        }
        steps.push(Step {
            job: Job::Entry(index),
            waits_for: waits_for.into_iter().collect(),
            locks: known.iter().filter(|(_, at)| locking && of_table(*at)).map(|(id, _)| table_of(*id)).collect(),
            needs: known.iter().map(|(id, _)| table_of(*id)).collect(),
            cost: item.dependencies.iter().filter_map(|id| sizes.get(id)).copied().max().unwrap_or(0),
        });
    }
    let graph = Graph { steps };
    match stuck(&graph) {
        // What waits for what runs after it: an entry is among them.
        Some(step) => match graph.steps[step].job {
            Job::Entry(index) => Err(RebuildPlanError::Circle { id: items[index].id }),
            Job::Data(_) | Job::Loaded => Ok(graph),
        },
        None => Ok(graph),
    }
}

/// The table's dump id, by that of its data.
fn data_of_tables(items: &[Item]) -> BTreeMap<i32, i32> {
    let tables: BTreeSet<i32> = items.iter().filter(|item| item.kind == Kind::Table).map(|item| item.id).collect();
    let data = items.iter().filter(|item| item.kind == Kind::TableData);
    data.filter_map(|item| item.dependencies.iter().find(|id| tables.contains(id)).map(|table| (item.id, *table)))
        .collect()
}
