use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::plan::export::MIB;

fn item(id: i32, phase: Phase, kind: Kind, dependencies: &[i32]) -> Item {
    Item { id, phase, kind, dependencies: dependencies.to_vec() }
}

fn limits(data: Extent) -> Limits {
    Limits { workers: 2, data }
}

const NONE: Extent = Extent { offset: 0, length: 0 };

/// Two tables with data; two indexes, a key and a foreign key.
fn shop() -> Vec<Item> {
    vec![
        item(1, Phase::Before, Kind::Table, &[]),
        item(2, Phase::Before, Kind::Table, &[]),
        item(11, Phase::Data, Kind::TableData, &[1]),
        item(12, Phase::Data, Kind::TableData, &[2]),
        item(21, Phase::After, Kind::Index, &[1]),
        item(22, Phase::After, Kind::Index, &[11]),
        item(23, Phase::After, Kind::Other, &[1]),
        item(24, Phase::After, Kind::Other, &[2, 23, 1]),
        item(25, Phase::WithItsObject, Kind::Other, &[21]),
        item(26, Phase::Last, Kind::Other, &[99]),
    ]
}

fn take(schedule: &mut Schedule) -> Option<(Job, usize)> {
    match schedule.take() {
        Next::Step(step) => Some((schedule.job(step), step)),
        _ => None,
    }
}

#[test]
fn indexes_of_one_table_run_side_by_side_and_keys_alone() {
    let plan = plan_rebuild(&shop(), &[], &limits(NONE)).unwrap();
    assert_eq!((plan.before.as_slice(), plan.last.steps.len()), ([0, 1].as_slice(), 1));
    assert_eq!(plan.privileges, [8], "the comment waits until no index is being built");
    let mut schedule = Schedule::new(plan.build);
    let loaded = take(&mut schedule).unwrap();
    assert_eq!(loaded.0, Job::Loaded);
    schedule.finish(loaded.1);
    let (first, second) = (take(&mut schedule).unwrap(), take(&mut schedule).unwrap());
    assert_eq!((first.0, second.0), (Job::Entry(4), Job::Entry(5)), "both indexes");
    assert_eq!(schedule.take(), Next::Wait, "the key locks their table");
    schedule.finish(first.1);
    schedule.finish(second.1);
    let key = take(&mut schedule).unwrap();
    assert_eq!((key.0, schedule.take()), (Job::Entry(6), Next::Wait));
    schedule.finish(key.1);
    let foreign = take(&mut schedule).unwrap();
    assert_eq!(foreign.0, Job::Entry(7));
    schedule.finish(foreign.1);
    assert_eq!(schedule.take(), Next::Done);
}

#[test]
fn what_needs_only_its_table_is_built_while_others_are_loaded() {
    let mut items = shop();
    // On the second table: an index, and one that calls a function.
    items.push(item(30, Phase::Before, Kind::Other, &[]));
    items.push(item(31, Phase::After, Kind::Index, &[12]));
    items.push(item(32, Phase::After, Kind::Index, &[12, 30]));
    let data = Extent { offset: 0, length: 100 * MIB };
    let blocks = [block(2, 0, 60 * MIB, &[]), block(3, 60 * MIB, 40 * MIB, &[])];
    let plan = plan_rebuild(&items, &blocks, &limits(data)).unwrap();
    let mut schedule = Schedule::new(plan.build);
    let (first, second) = (take(&mut schedule).unwrap(), take(&mut schedule).unwrap());
    assert_eq!((first.0, second.0, schedule.take()), (Job::Data(0), Job::Data(1), Next::Wait));
    schedule.finish(second.1);
    let index = take(&mut schedule).unwrap();
    assert_eq!((index.0, schedule.take()), (Job::Entry(11), Next::Wait));
    schedule.finish(first.1);
    assert_eq!(take(&mut schedule).unwrap().0, Job::Loaded);
}

#[test]
fn circles_and_doubled_ids_are_refused() {
    let after = |id, dependencies: &[i32]| item(id, Phase::After, Kind::Other, dependencies);
    for (items, expected) in [
        (vec![after(1, &[2]), after(2, &[1])], RebuildPlanError::Circle { id: 1 }),
        (vec![after(1, &[1])], RebuildPlanError::Circle { id: 1 }),
        (vec![after(1, &[]), after(1, &[])], RebuildPlanError::DuplicateId { id: 1 }),
    ] {
        assert_eq!(plan_rebuild(&items, &[], &limits(NONE)), Err(expected));
    }
    // A chain as long as an archive can hold is no deep recursion.
    let chain: Vec<Item> = (0..200_000).map(|id| after(id, &[id - 1])).collect();
    assert_eq!(plan_rebuild(&chain, &[], &limits(NONE)).unwrap().build.steps.len(), 200_001);
}

fn block(item: usize, offset: u64, length: u64, pieces: &[(u64, u64)]) -> Block {
    let pieces = pieces.iter().map(|&(offset, length)| Extent { offset, length }).collect();
    Block { item, offset: Some(offset), length: Some(length), pieces }
}

#[test]
fn a_big_table_is_split_and_small_ones_are_joined() {
    let data = Extent { offset: 100, length: 100 * MIB };
    let pieces: Vec<(u64, u64)> = (0..30).map(|n| (MIB + n * 3 * MIB, 3 * MIB)).collect();
    let blocks = [
        block(2, MIB, 90 * MIB + 10, &pieces),
        block(3, 100, 50, &[]),
        block(4, 200, 60, &[]),
        block(5, 92 * MIB, 9, &[]),
    ];
    let plan = plan_rebuild(&shop(), &blocks, &limits(data)).unwrap();
    let groups = plan.data.iter().filter(|task| matches!(task.content, Content::Pieces { .. })).count();
    assert_eq!((groups, plan.data.len()), (30, 32));
    let small: Vec<_> = plan.data.iter().filter(|task| matches!(task.content, Content::Blocks(_))).collect();
    assert_eq!(small[0].content, Content::Blocks(vec![1, 2]));
    assert_eq!(small[0].extent, Extent { offset: 100, length: 160 });
}

#[test]
fn an_archive_from_a_pipe_is_read_in_one_go() {
    let blocks = [Block { item: 2, offset: None, length: None, pieces: vec![] }, block(3, 5, 5, &[])];
    let data = Extent { offset: 7, length: 1000 };
    let plan = plan_rebuild(&shop(), &blocks, &limits(data)).unwrap();
    assert_eq!(plan.data, [DataTask { extent: data, content: Content::Blocks(vec![0, 1]) }]);
}

#[test]
fn nonsense_offsets_are_refused() {
    let data = Extent { offset: 100, length: 1000 };
    for blocks in [
        vec![block(2, 99, 10, &[])],
        vec![block(2, 1000, 101, &[])],
        vec![block(2, u64::MAX, 10, &[])],
        vec![block(2, 200, u64::MAX, &[])],
        vec![block(2, 200, 50, &[]), block(3, 200, 50, &[])],
        vec![block(2, 200, 60, &[]), block(3, 250, 50, &[])],
        vec![block(2, 200, 60, &[(200, 61)])],
        vec![block(2, 200, 60, &[(230, 10), (220, 10)])],
        vec![block(2, 200, 60, &[(u64::MAX, 10)])],
    ] {
        let refused = plan_rebuild(&shop(), &blocks, &limits(data));
        assert!(matches!(refused, Err(RebuildPlanError::Misplaced { .. })), "{blocks:?}: {refused:?}");
    }
}

proptest! {
    #[test]
    fn every_step_runs_once_after_what_it_waits_for(
        edges in proptest::collection::vec((0i32..30, 0i32..30), 0..60), kinds in proptest::collection::vec(0u8..4, 30), workers in 1usize..5,
    ) {
        let items: Vec<Item> = (0..30).map(|id| {
            // Only backwards: no circles.
            let dependencies: Vec<i32> = edges.iter().filter(|(from, to)| *from == id && *to < id).map(|(_, to)| *to).collect();
            match kinds[id as usize] {
                0 => item(id, Phase::Before, Kind::Table, &dependencies),
                1 => item(id, Phase::After, Kind::Index, &dependencies),
                2 => item(id, Phase::WithItsObject, Kind::Other, &dependencies),
                _ => item(id, Phase::After, Kind::Other, &dependencies),
            }
        }).collect();
        let plan = plan_rebuild(&items, &[], &limits(NONE)).unwrap();
        let count = plan.build.steps.len();
        let graph = plan.build.clone();
        let mut schedule = Schedule::new(plan.build);
        let (mut running, mut done) = (Vec::new(), BTreeSet::new());
        loop {
            match schedule.take() {
                Next::Step(step) if running.len() < workers => {
                    prop_assert!(graph.steps[step].waits_for.iter().all(|before| done.contains(before)));
                    running.push(step);
                    if running.len() == workers {
                        let finished = running.remove(0);
                        prop_assert!(done.insert(finished));
                        schedule.finish(finished);
                    }
                }
                Next::Step(_) => unreachable!(),
                Next::Wait => {
                    prop_assert!(!running.is_empty(), "nothing runs, and nothing can");
                    let finished = running.remove(0);
                    prop_assert!(done.insert(finished));
                    schedule.finish(finished);
                }
                Next::Done => break,
            }
            if running.is_empty() && done.len() == count { break }
        }
        running.into_iter().for_each(|step| { done.insert(step); });
        prop_assert_eq!(done.len(), count);
    }
}
