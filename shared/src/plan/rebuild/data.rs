//! Data in tasks: where each block lies, and which run of bytes is one stream's.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Block, Extent, Item, Limits, RebuildPlanError};
use crate::plan::export::MIB;

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

/// Every block's extent, checked, in the order of `blocks`; `None` where offsets are missing.
pub(super) fn place(
    items: &[Item],
    blocks: &[Block],
    limits: &Limits,
) -> Result<Option<Vec<Extent>>, RebuildPlanError> {
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

/// The tasks, those of the largest tables first: what takes longest is begun first.
pub(super) fn data_tasks(blocks: &[Block], placed: Option<&[Extent]>, limits: &Limits) -> Vec<DataTask> {
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
pub(super) fn table_sizes(items: &[Item], blocks: &[Block], placed: Option<&[Extent]>) -> BTreeMap<i32, u64> {
    let mut sizes = BTreeMap::new();
    for (block, extent) in blocks.iter().zip(placed.unwrap_or_default()) {
        let item = &items[block.item];
        for id in item.dependencies.iter().chain([&item.id]) {
            sizes.insert(*id, extent.length);
        }
    }
    sizes
}
