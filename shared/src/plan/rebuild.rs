//! In what order a database is rebuilt from an archive: definitions, data in tasks for several streams, and a graph
//! of what can run side by side after it. The archive may be hostile: every number is checked before it is used.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use crate::plan::export::MIB;

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
    /// What runs queries or reacts to definitions (materialized views, event triggers), and statistics.
    Last,
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

/// One stream of data into the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataTask {
    pub extent: Extent,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Whole blocks, in the archive's order; numbers in the list of blocks.
    Blocks(Vec<usize>),
    /// Some pieces of one block.
    Pieces { block: usize, pieces: Range<usize> },
}

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
    locks: Vec<i32>,
    needs: Vec<i32>,
    cost: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    pub steps: Vec<Step>,
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
        }
    }
    let sizes = table_sizes(items, blocks, placed.as_deref());
    plan.privileges.splice(0..0, comments);
    let loading = Loading { tasks: &plan.data, blocks };
    plan.build = graph(items, &by_id, &sizes, &after, Some(&loading))?;
    plan.last = graph(items, &by_id, &sizes, &last, None)?;
    Ok(plan)
}

/// Every block's extent, checked, in the order of `blocks`; `None` where offsets are missing.
fn place(items: &[Item], blocks: &[Block], limits: &Limits) -> Result<Option<Vec<Extent>>, RebuildPlanError> {
    let Some(offsets) = blocks.iter().map(|block| block.offset).collect::<Option<Vec<u64>>>() else {
        return Ok(None);
    };
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&index| offsets[index]);
    let data_end = limits.data.end().unwrap_or(u64::MAX);
    let mut extents = vec![Extent { offset: 0, length: 0 }; blocks.len()];
    let mut free_from = limits.data.offset;
    for (position, &index) in order.iter().enumerate() {
        let misplaced = RebuildPlanError::Misplaced { id: items[blocks[index].item].id };
        let next = order.get(position + 1).map_or(data_end, |&next| offsets[next]);
        // What lies before the first block of an archive of others is read with it, and refused.
        let unmeasured_first = position == 0 && blocks[index].length.is_none() && offsets[index] > free_from;
        let offset = if unmeasured_first { free_from } else { offsets[index] };
        let length = blocks[index].length.unwrap_or(next.saturating_sub(offset));
        let extent = Extent { offset, length };
        let end = extent.end().filter(|&end| offset >= free_from && length > 0 && end <= next.min(data_end));
        let Some(end) = end else { return Err(misplaced) };
        let mut piece_from = offset;
        for piece in &blocks[index].pieces {
            let inside = piece.end().filter(|&at| piece.offset >= piece_from && at <= end && piece.length > 0);
            let Some(piece_end) = inside else { return Err(misplaced) };
            piece_from = piece_end;
        }
        free_from = end;
        extents[index] = extent;
    }
    Ok(Some(extents))
}

fn data_tasks(blocks: &[Block], placed: Option<&[Extent]>, limits: &Limits) -> Vec<DataTask> {
    if blocks.is_empty() {
        return Vec::new();
    }
    let Some(extents) = placed else {
        return vec![DataTask { extent: limits.data, content: Content::Blocks((0..blocks.len()).collect()) }];
    };
    let total: u64 = extents.iter().map(|extent| extent.length).sum();
    let share = total / (limits.workers.max(1) as u64 * 16);
    let (bundle_bytes, group_bytes) = (share.clamp(MIB / 4, 4 * MIB), share.clamp(MIB, 64 * MIB));
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&index| extents[index].offset);
    let mut tasks: Vec<DataTask> = Vec::new();
    let mut bundle: Option<(Extent, Vec<usize>)> = None;
    for index in order {
        let extent = extents[index];
        // A table that fits one stream's share is left to it: alone in its table it can load frozen rows.
        let share_of_half_a_worker = total / (limits.workers.max(1) as u64 * 2);
        if extent.length > group_bytes.max(share_of_half_a_worker) && blocks[index].pieces.len() > 1 {
            tasks.extend(groups(index, &blocks[index].pieces, group_bytes));
            continue;
        }
        let end = extent.offset + extent.length;
        match &mut bundle {
            Some((open, members)) if end - open.offset <= bundle_bytes => {
                open.length = end - open.offset;
                members.push(index);
            }
            _ => {
                tasks.extend(bundle.take().map(bundled));
                bundle = Some((extent, vec![index]));
            }
        }
    }
    tasks.extend(bundle.map(bundled));
    let of_table = |task: &DataTask| match task.content {
        Content::Pieces { block, .. } => extents[block].length,
        Content::Blocks(_) => task.extent.length,
    };
    // The pieces of one table in its order: so its rows lie where they lay.
    tasks.sort_by_key(|task| (std::cmp::Reverse(of_table(task)), task.extent.offset));
    tasks
}

fn bundled((extent, members): (Extent, Vec<usize>)) -> DataTask {
    DataTask { extent, content: Content::Blocks(members) }
}

/// Pieces that lie one behind the other, up to a size.
fn groups(block: usize, pieces: &[Extent], group_bytes: u64) -> Vec<DataTask> {
    let mut tasks: Vec<DataTask> = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let joined = tasks.last_mut().filter(|task| {
            task.extent.offset + task.extent.length == piece.offset && task.extent.length + piece.length <= group_bytes
        });
        match joined {
            Some(DataTask { extent, content: Content::Pieces { pieces, .. } }) => {
                extent.length += piece.length;
                pieces.end = index + 1;
            }
            _ => tasks.push(DataTask { extent: *piece, content: Content::Pieces { block, pieces: index..index + 1 } }),
        }
    }
    tasks
}

/// Bytes by the dump id of a table, and of its data.
fn table_sizes(items: &[Item], blocks: &[Block], placed: Option<&[Extent]>) -> BTreeMap<i32, u64> {
    let mut sizes = BTreeMap::new();
    for (block, extent) in blocks.iter().zip(placed.unwrap_or_default()) {
        let item = &items[block.item];
        for id in item.dependencies.iter().chain([&item.id]) {
            sizes.insert(*id, extent.length);
        }
    }
    sizes
}

/// What a graph begins with.
struct Loading<'a> {
    tasks: &'a [DataTask],
    blocks: &'a [Block],
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

fn graph(
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
    match in_circle(&graph) {
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

/// A step that can never run, if there is one.
fn in_circle(graph: &Graph) -> Option<usize> {
    let mut schedule = Schedule::new(graph.clone());
    let mut ready: VecDeque<usize> = schedule.ready.drain(..).collect();
    let mut done = vec![false; graph.steps.len()];
    while let Some(step) = ready.pop_front() {
        done[step] = true;
        schedule.release(step);
        ready.extend(schedule.ready.drain(..));
    }
    done.iter().position(|done| !done)
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Step(usize),
    /// Something that runs has to finish first.
    Wait,
    Done,
}

/// Hands out the steps of a graph: no sooner than what they wait for, none beside one that locks what it needs.
#[derive(Debug)]
pub struct Schedule {
    steps: Vec<Step>,
    missing: Vec<usize>,
    dependents: Vec<Vec<usize>>,
    /// The costliest last.
    ready: Vec<usize>,
    running: Vec<usize>,
    left: usize,
}

impl Schedule {
    pub fn new(graph: Graph) -> Self {
        let steps = graph.steps;
        let mut dependents = vec![Vec::new(); steps.len()];
        for (index, step) in steps.iter().enumerate() {
            step.waits_for.iter().for_each(|&before| dependents[before].push(index));
        }
        let missing: Vec<usize> = steps.iter().map(|step| step.waits_for.len()).collect();
        let mut ready: Vec<usize> = (0..steps.len()).filter(|&step| missing[step] == 0).collect();
        ready.sort_by_key(|&step| (steps[step].cost, std::cmp::Reverse(step)));
        Self { left: steps.len(), steps, missing, dependents, ready, running: Vec::new() }
    }

    pub fn take(&mut self) -> Next {
        self.take_of(|_| true)
    }

    /// The next of the jobs that are wanted now.
    pub fn take_of(&mut self, wanted: impl Fn(Job) -> bool) -> Next {
        let free = self.ready.iter().rposition(|&step| {
            wanted(self.steps[step].job) && !self.running.iter().any(|&other| self.conflict(step, other))
        });
        match free {
            Some(at) => {
                let step = self.ready.remove(at);
                self.running.push(step);
                Next::Step(step)
            }
            None if self.left == 0 => Next::Done,
            None => Next::Wait,
        }
    }

    pub fn job(&self, step: usize) -> Job {
        self.steps[step].job
    }

    pub fn finish(&mut self, step: usize) {
        self.running.retain(|&running| running != step);
        self.left = self.left.saturating_sub(1);
        self.release(step);
    }

    fn release(&mut self, step: usize) {
        for dependent in std::mem::take(&mut self.dependents[step]) {
            self.missing[dependent] -= 1;
            if self.missing[dependent] == 0 {
                let key = |step: usize| (self.steps[step].cost, std::cmp::Reverse(step));
                let at = self.ready.partition_point(|&other| key(other) < key(dependent));
                self.ready.insert(at, dependent);
            }
        }
    }

    fn conflict(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.steps[a], &self.steps[b]);
        a.locks.iter().any(|lock| b.needs.contains(lock)) || b.locks.iter().any(|lock| a.needs.contains(lock))
    }
}

#[cfg(test)]
mod tests;
