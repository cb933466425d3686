//! What the export reads in which pieces, and which part numbers of the upload each piece may fill.
//!
//! The object is a row of *units* in the order of the table of contents. A unit is either a bundle of small
//! entries that one worker reads one after the other, or one big entry that is split into pieces for several.

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub const MIB: u64 = 1024 * 1024;
/// S3's lower limit for every part but the last (Amazon S3 User Guide, "Multipart upload limits").
pub const MIN_PART_SIZE_BYTES: u64 = 5 * MIB;
/// S3's upper limit for part numbers (same page).
pub const MAX_PARTS: u32 = 10_000;
/// What one more COPY costs beside its bytes, in bytes that could have been read instead.
const ENTRY_OVERHEAD_BYTES: u64 = 32 * 1024;
/// The same for one large object.
const OBJECT_OVERHEAD_BYTES: u64 = 4 * 1024;
const MAX_UNITS: u64 = 2_000;
/// Part numbers that are not shared out by size: a small table's text may be many times what it takes on disk.
const EQUAL_SHARES: u64 = 2_000;
const MAX_EQUAL_SHARE: u64 = 64;

/// One data entry of the table of contents, as the catalog sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataEntry {
    /// Index of the entry in the table of contents.
    pub toc_index: usize,
    pub extent: Extent,
}

/// How large an entry is on the server, and whether it can be read in ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    /// A heap whose rows can be chosen by ctid: pages of the main fork, and bytes with TOAST.
    Heap { pages: u64, bytes: u64 },
    /// Anything that is read whole.
    Whole { bytes: u64 },
    /// Large objects, by number.
    LargeObjects { count: u64, bytes: u64 },
}

impl Extent {
    fn bytes(&self) -> u64 {
        match *self {
            Self::Heap { bytes, .. } | Self::Whole { bytes } | Self::LargeObjects { bytes, .. } => bytes,
        }
    }

    /// Bytes, with the round trips an entry costs counted as bytes.
    fn cost(&self) -> u64 {
        let objects = if let Self::LargeObjects { count, .. } = *self { count } else { 0 };
        self.bytes() + ENTRY_OVERHEAD_BYTES + objects * OBJECT_OVERHEAD_BYTES
    }
}

/// One COPY (or one batch of large objects).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    Whole,
    /// Heap pages `from..to`; no `to` means to the end, whatever has been appended.
    Pages {
        from: u64,
        to: Option<u64>,
    },
    /// Positions in the entry's list of large objects.
    LargeObjects(Range<usize>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Entries (indexes into the plan's input) read one after the other by one worker.
    Bundle(Vec<usize>),
    /// One entry read in pieces by as many workers as are free.
    Split { entry: usize, pieces: Vec<Piece> },
}

impl Content {
    /// How many pieces have to be done; a bundle is one.
    pub fn pieces(&self) -> usize {
        match self {
            Self::Bundle(_) => 1,
            Self::Split { pieces, .. } => pieces.len(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    pub content: Content,
    /// Part numbers this unit may use; S3 allows gaps.
    pub parts: Range<u32>,
    pub estimated_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportPlan {
    /// In the order of the table of contents; part 1 is the head's.
    pub units: Vec<Unit>,
    /// Indexes of `units` in the order they are begun.
    pub order: Vec<usize>,
    pub part_size_bytes: u64,
    pub workers: usize,
    /// Parts that may be on their way to S3 at once, all workers together.
    pub uploads_in_flight: usize,
    /// Bytes that may wait for a neighbour's end before they are padded instead.
    pub seam_budget_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub workers: usize,
    /// The smallest part size to use.
    pub part_size_bytes: u64,
    /// What the buffers of the whole run may hold.
    pub memory_bytes: u64,
}

/// Divides the entries into units and pieces.
///
/// Each unit's range of part numbers is its share of all 10,000, so that an estimate may be wrong by a factor;
/// the upload grows its parts when a range runs short ([`part_size_at`]).
pub fn plan_export(entries: &[DataEntry], limits: &Limits) -> ExportPlan {
    let total: u64 = entries.iter().map(|entry| entry.extent.cost()).sum();
    let lanes = limits.workers.max(1) as u64;
    let bundle_bytes = (total / (lanes * 8)).clamp(4 * MIB, 64 * MIB).max(total / MAX_UNITS);
    let piece_bytes = (total / (lanes * 64)).clamp(16 * MIB, 256 * MIB).max(total / 20_000);
    let part_size_bytes = limits.part_size_bytes.max(MIN_PART_SIZE_BYTES).max(5 * total / 2 / u64::from(MAX_PARTS));

    let contents = divide(entries, bundle_bytes, piece_bytes);
    let units = number_parts(contents, entries);
    let order = processing_order(&units, entries);

    // A worker holds the part it fills (and as much again while rows run over), each upload one part.
    let (workers, uploads_in_flight) = fit_memory(limits, part_size_bytes);
    ExportPlan {
        units,
        order,
        part_size_bytes,
        workers,
        uploads_in_flight,
        seam_budget_bytes: (limits.memory_bytes / 3).max(3 * part_size_bytes),
    }
}

fn divide(entries: &[DataEntry], bundle_bytes: u64, piece_bytes: u64) -> Vec<Content> {
    let mut contents = Vec::new();
    let mut bundle: Vec<usize> = Vec::new();
    let mut bundled: u64 = 0;
    for (index, entry) in entries.iter().enumerate() {
        let cost = entry.extent.cost();
        let alone = cost > bundle_bytes;
        if alone || bundled + cost > bundle_bytes {
            if !bundle.is_empty() {
                contents.push(Content::Bundle(std::mem::take(&mut bundle)));
            }
            bundled = 0;
        }
        if alone {
            contents.push(Content::Split { entry: index, pieces: split(&entry.extent, piece_bytes) });
        } else {
            bundle.push(index);
            bundled += cost;
        }
    }
    if !bundle.is_empty() {
        contents.push(Content::Bundle(bundle));
    }
    contents
}

fn split(extent: &Extent, piece_bytes: u64) -> Vec<Piece> {
    match *extent {
        Extent::Whole { .. } => vec![Piece::Whole],
        Extent::Heap { pages, bytes } => {
            let count = bytes.div_ceil(piece_bytes).clamp(1, pages.max(1));
            (0..count)
                .map(|i| Piece::Pages {
                    from: pages * i / count,
                    to: (i + 1 < count).then_some(pages * (i + 1) / count),
                })
                .collect()
        }
        Extent::LargeObjects { count, bytes } => {
            let pieces = bytes.div_ceil(piece_bytes).max(count.div_ceil(2_000)).clamp(1, count.max(1));
            (0..pieces)
                .map(|i| Piece::LargeObjects((count * i / pieces) as usize..(count * (i + 1) / pieces) as usize))
                .collect()
        }
    }
}

fn number_parts(contents: Vec<Content>, entries: &[DataEntry]) -> Vec<Unit> {
    let estimate = |content: &Content| -> u64 {
        let bytes = |index: usize| entries[index].extent.cost();
        match content {
            Content::Bundle(indexes) => indexes.iter().map(|&index| bytes(index)).sum(),
            Content::Split { entry, .. } => bytes(*entry),
        }
    };
    let total: u64 = contents.iter().map(&estimate).sum::<u64>().max(1);
    // Part 1 is the head's. Two numbers are each unit's by right: its first part, and a padded last one.
    let equal = (EQUAL_SHARES / (contents.len() as u64).max(1)).clamp(0, MAX_EQUAL_SHARE);
    let shared = u64::from(MAX_PARTS - 1) - (2 + equal) * contents.len() as u64;
    let mut next: u32 = 2;
    contents
        .into_iter()
        .map(|content| {
            let estimated_bytes = estimate(&content);
            let share = u128::from(shared) * u128::from(estimated_bytes) / u128::from(total);
            let end = next + 2 + equal as u32 + share as u32;
            let parts = next..end;
            next = end;
            Unit { content, parts, estimated_bytes }
        })
        .collect()
}

/// What cannot be divided is begun first, largest first; what can be divided fills the gaps at the end.
fn processing_order(units: &[Unit], entries: &[DataEntry]) -> Vec<usize> {
    let divisible = |unit: &Unit| matches!(&unit.content, Content::Split { pieces, .. } if pieces.len() > 1);
    let mut order: Vec<usize> = (0..units.len()).collect();
    // Large indivisible units by size; the small ones stay in the archive's order, so that neighbours meet.
    let indivisible_key = |unit: &Unit| match &unit.content {
        Content::Split { entry, .. } => u64::MAX - entries[*entry].extent.bytes(),
        Content::Bundle(_) => u64::MAX,
    };
    order.sort_by_key(|&index| (divisible(&units[index]), indivisible_key(&units[index]), index));
    let first_divisible = order.partition_point(|&index| !divisible(&units[index]));
    order[first_divisible..].sort_by_key(|&index| (std::cmp::Reverse(units[index].estimated_bytes), index));
    order
}

fn fit_memory(limits: &Limits, part_size_bytes: u64) -> (usize, usize) {
    let budget = limits.memory_bytes / part_size_bytes.max(1);
    let workers = limits.workers.clamp(1, ((budget / 3).max(1)) as usize);
    let uploads = (budget as usize).saturating_sub(2 * workers).clamp(1, 2 * workers);
    (workers, uploads)
}

/// The size at which the `used`-th part of a range of `available` numbers is cut: it doubles each time half of
/// what was left is used up, so that a wrong estimate ends in larger parts, not in a failed backup.
pub fn part_size_at(base_bytes: u64, used: u32, available: u32) -> u64 {
    let mut size = base_bytes;
    let (mut used, mut available) = (used, available.max(1));
    while available > 1 && used >= available / 2 {
        used -= available / 2;
        available -= available / 2;
        size = size.saturating_mul(2);
    }
    size.min(5 * 1024 * MIB)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(workers: usize) -> Limits {
        Limits { workers, part_size_bytes: 8 * MIB, memory_bytes: 128 * MIB }
    }

    fn extent() -> impl Strategy<Value = Extent> {
        let bytes = prop_oneof![0u64..100_000, 0u64..200_000_000, 0u64..(1 << 40)];
        prop_oneof![
            bytes.clone().prop_map(|bytes| Extent::Heap { pages: bytes / 8192, bytes }),
            bytes.clone().prop_map(|bytes| Extent::Whole { bytes }),
            (0u64..100_000, bytes).prop_map(|(count, bytes)| Extent::LargeObjects { count, bytes }),
        ]
    }

    #[test]
    fn one_giant_table_keeps_every_worker_busy() {
        let entries = [DataEntry { toc_index: 0, extent: Extent::Heap { pages: 131_072, bytes: 1 << 30 } }];
        let plan = plan_export(&entries, &limits(4));
        let Content::Split { pieces, .. } = &plan.units[0].content else { panic!("not split") };
        assert!(pieces.len() >= 16, "{}", pieces.len());
        assert_eq!(plan.workers, 4);
    }

    #[test]
    fn five_thousand_small_tables_are_a_few_units() {
        let entries: Vec<_> =
            (0..5_000).map(|i| DataEntry { toc_index: i, extent: Extent::Heap { pages: 1, bytes: 8192 } }).collect();
        let plan = plan_export(&entries, &limits(2));
        assert!((4..=64).contains(&plan.units.len()), "{}", plan.units.len());
    }

    #[test]
    fn an_empty_database_has_no_units() {
        assert!(plan_export(&[], &limits(2)).units.is_empty());
    }

    #[test]
    fn an_unsplittable_giant_is_begun_first() {
        let heap = |bytes| Extent::Heap { pages: bytes / 8192, bytes };
        let entries: Vec<_> = [heap(1 << 33), heap(1 << 20), Extent::Whole { bytes: 1 << 32 }, heap(1 << 32)]
            .into_iter()
            .enumerate()
            .map(|(toc_index, extent)| DataEntry { toc_index, extent })
            .collect();
        let plan = plan_export(&entries, &limits(2));
        assert_eq!(plan.order, [2, 1, 0, 3]);
    }

    #[test]
    fn parts_grow_when_numbers_run_short() {
        assert_eq!(part_size_at(8 * MIB, 0, 100), 8 * MIB);
        assert_eq!(part_size_at(8 * MIB, 49, 100), 8 * MIB);
        assert_eq!(part_size_at(8 * MIB, 50, 100), 16 * MIB);
        assert_eq!(part_size_at(8 * MIB, 75, 100), 32 * MIB);
        assert_eq!(part_size_at(8 * MIB, 0, 1), 8 * MIB);
    }

    #[test]
    fn a_small_table_beside_a_giant_one_may_grow_on_the_way() {
        let heap = |bytes| Extent::Heap { pages: bytes / 8192, bytes };
        let entries: Vec<_> = [heap(1 << 40), heap(1 << 20)]
            .into_iter()
            .enumerate()
            .map(|(toc_index, extent)| DataEntry { toc_index, extent })
            .collect();
        let plan = plan_export(&entries, &limits(2));
        let available = plan.units[1].parts.len() as u32 - 2;
        let capacity: u64 = (0..available).map(|used| part_size_at(plan.part_size_bytes, used, available)).sum();
        assert!(capacity >= 1 << 30, "{capacity}");
    }

    proptest! {
        #[test]
        fn every_page_and_object_is_read_once_and_part_numbers_are_legal(
            extents in proptest::collection::vec(extent(), 0..60), workers in 1usize..9, memory in 16u64..512,
        ) {
            let entries: Vec<_> = extents.into_iter().enumerate().map(|(toc_index, extent)| DataEntry { toc_index, extent }).collect();
            let limits = Limits { workers, part_size_bytes: 8 * MIB, memory_bytes: memory * MIB };
            let plan = plan_export(&entries, &limits);

            let mut seen = Vec::new();
            let mut next_part = 2;
            for unit in &plan.units {
                prop_assert!(unit.parts.start == next_part && unit.parts.len() >= 2);
                next_part = unit.parts.end;
                match &unit.content {
                    Content::Bundle(indexes) => seen.extend(indexes.iter().copied()),
                    Content::Split { entry, pieces } => {
                        seen.push(*entry);
                        match &entries[*entry].extent {
                            Extent::Whole { .. } => prop_assert_eq!(pieces, &vec![Piece::Whole]),
                            Extent::Heap { .. } => {
                                let mut expected = Some(0);
                                for piece in pieces {
                                    let Piece::Pages { from, to } = piece else { panic!() };
                                    prop_assert_eq!(Some(*from), expected);
                                    expected = *to;
                                }
                                prop_assert_eq!(expected, None, "the last range is open");
                            }
                            Extent::LargeObjects { count, .. } => {
                                let mut at = 0;
                                for piece in pieces {
                                    let Piece::LargeObjects(range) = piece else { panic!() };
                                    prop_assert_eq!(range.start, at);
                                    at = range.end;
                                }
                                prop_assert_eq!(at as u64, *count);
                            }
                        }
                    }
                }
            }
            prop_assert!(next_part <= MAX_PARTS + 1);
            prop_assert_eq!(seen, (0..entries.len()).collect::<Vec<_>>(), "archive order, nothing twice");
            let mut order = plan.order.clone();
            order.sort_unstable();
            prop_assert_eq!(order, (0..plan.units.len()).collect::<Vec<_>>());
            prop_assert!(plan.workers >= 1 && plan.workers <= workers);
        }
    }
}
