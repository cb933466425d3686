use proptest::prelude::*;

use super::*;

const PAD: u8 = 0xEE;
const MIN_PART_BYTES: u64 = 500;

fn padding(len: u64) -> Bytes {
    Bytes::from(vec![PAD; len.max(16) as usize])
}

/// `len` bytes that tell which unit they are of.
fn run(unit: usize, len: u64) -> Rope<(usize, u64)> {
    let mut rope = Rope::default();
    if len > 0 {
        rope.mark((unit, len));
        rope.push(Bytes::from(vec![unit as u8; len as usize]));
    }
    rope
}

#[derive(Debug, Clone)]
struct Script {
    /// For each unit: sizes of its full parts, and of its end.
    units: Vec<(Vec<u64>, u64)>,
    /// Which unfinished unit moves next, as indexes to be wrapped.
    moves: Vec<usize>,
    budget: u64,
}

fn script() -> impl Strategy<Value = Script> {
    let part = MIN_PART_BYTES..MIN_PART_BYTES + 40;
    let unit = (proptest::collection::vec(part, 0..4), prop_oneof![Just(0u64), 1u64..60, Just(MIN_PART_BYTES - 1)]);
    (
        proptest::collection::vec(unit, 0..6),
        proptest::collection::vec(0usize..100, 40),
        prop_oneof![Just(0u64), Just(1_200), Just(1u64 << 30)],
    )
        .prop_map(|(units, moves, budget)| Script { units, moves, budget })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn the_object_is_whole_whatever_the_order(script in script()) {
        let ranges = script.units.iter().enumerate().map(|(i, _)| (2 + 10 * i as u32)..(12 + 10 * i as u32));
        let mut spine = Spine::new(ranges, script.budget, MIN_PART_BYTES, padding);
        let mut parts: BTreeMap<u32, Shipment> = BTreeMap::new();
        let mut put = |shipments: Vec<Shipment>| -> Result<(), TestCaseError> {
            for shipment in shipments {
                prop_assert!(parts.insert(shipment.part_number, shipment).is_none(), "a part twice");
            }
            Ok(())
        };
        let mut progress = vec![0usize; script.units.len()];
        let mut moves = script.moves.iter().cycle();
        loop {
            let open: Vec<_> = (0..progress.len()).filter(|&i| progress[i] <= script.units[i].0.len()).collect();
            if open.is_empty() { break }
            let i = open[moves.next().unwrap() % open.len()];
            let (full, end) = &script.units[i];
            let at = progress[i];
            progress[i] += 1;
            if at < full.len() {
                if at == 0 {
                    put(spine.begin(i + 1, run(i + 1, full[0])))?;
                } else {
                    let number = spine.next_part(i + 1).unwrap();
                    let shipment = spine.fill(number, run(i + 1, full[at]));
                    put(vec![shipment])?;
                }
            } else {
                put(spine.finish(i + 1, run(i + 1, *end)))?;
            }
        }
        let layout = spine.layout(33);
        put(spine.finish(0, run(0, 33)))?;

        prop_assert_eq!(spine.held_bytes(), 0);
        let last = *parts.keys().last().unwrap();
        prop_assert_eq!(*parts.keys().next().unwrap(), 1, "the head is part 1");
        let mut object = Vec::new();
        for (number, part) in &parts {
            prop_assert!(part.len >= MIN_PART_BYTES || *number == last, "part {} of {} is short", number, last);
            part.chunks.iter().for_each(|chunk| object.extend_from_slice(chunk));
        }
        prop_assert_eq!(object.len() as u64, layout.size_bytes);
        let content: Vec<u8> = object.iter().copied().filter(|&b| b != PAD).collect();
        let mut expected = vec![0u8; 33];
        for (i, (full, end)) in script.units.iter().enumerate() {
            expected.resize(expected.len() + (full.iter().sum::<u64>() + end) as usize, i as u8 + 1);
        }
        prop_assert!(content == expected, "content differs");
        for ((unit, len), offset) in layout.marks {
            let marked = &object[offset as usize..(offset + len) as usize];
            prop_assert!(marked.iter().all(|&b| b as usize == unit), "mark of unit {} at {}", unit, offset);
        }
        if script.budget == 1 << 30 {
            prop_assert!(!object.contains(&PAD), "nothing needs padding with memory to spare");
        }
    }
}

#[test]
fn numbers_run_out_with_an_error() {
    let mut spine: Spine<()> = Spine::new(std::iter::once(2..5), 0, MIN_PART_BYTES, padding);
    assert_eq!(spine.next_part(1), Ok(3));
    assert_eq!(spine.next_part(1), Err(PartsExhausted { unit: 1, available: 1 }));
}
