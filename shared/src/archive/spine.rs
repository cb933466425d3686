//! Puts one object together from units that are produced at the same time, by the rules of a multipart upload.
//!
//! The object is *head, unit 1, unit 2, …*. Each unit is a run of parts of its own; what is left at its end is
//! shorter than S3's smallest part, so it is joined with the beginning of the next unit, which is held back for
//! that. Where holding back would take too much memory, the end is filled up with a padding block instead.
//! Pure: bytes in, [`Shipment`]s out.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

/// Bytes in several pieces, with marks at offsets that are translated to the object's when all is in place.
#[derive(Debug, Clone)]
pub struct Rope<M> {
    chunks: Vec<Bytes>,
    len: u64,
    marks: Vec<(u64, M)>,
}

impl<M> Default for Rope<M> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0, marks: Vec::new() }
    }
}

impl<M> Rope<M> {
    pub fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len() as u64;
        if !bytes.is_empty() {
            self.chunks.push(bytes);
        }
    }

    /// Appends bytes with marks at offsets within them.
    pub fn push_marked(&mut self, bytes: Bytes, marks: Vec<(u64, M)>) {
        let shift = self.len;
        self.marks.extend(marks.into_iter().map(|(at, mark)| (at + shift, mark)));
        self.push(bytes);
    }

    /// Marks the current end.
    pub fn mark(&mut self, mark: M) {
        self.marks.push((self.len, mark));
    }

    pub fn append(&mut self, other: Self) {
        let shift = self.len;
        self.marks.extend(other.marks.into_iter().map(|(at, mark)| (at + shift, mark)));
        self.chunks.extend(other.chunks);
        self.len += other.len;
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }
}

/// One part to upload.
#[derive(Debug, Clone)]
pub struct Shipment {
    pub part_number: u32,
    pub chunks: Vec<Bytes>,
    pub len: u64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unit {unit} has used up its {available} part numbers")]
pub struct PartsExhausted {
    pub unit: usize,
    pub available: u32,
}

#[derive(Debug, Clone)]
enum Beginning<M> {
    /// The unit has not filled a part yet.
    Open,
    /// Its first part is ready and waits for the end of the unit before.
    Held(Rope<M>),
    /// What stands before it no longer concerns it.
    Settled,
}

#[derive(Debug, Clone)]
struct Slot<M> {
    parts: Range<u32>,
    used: u32,
    beginning: Beginning<M>,
    /// What is left at the end, once the unit is finished. With an open beginning: the whole unit.
    end: Option<Rope<M>>,
    /// The part number of the end: the unit's last, or that of the unit its first byte is of.
    end_number: u32,
}

impl<M> Slot<M> {
    fn held_bytes(&self) -> u64 {
        let first = if let Beginning::Held(rope) = &self.beginning { rope.len() } else { 0 };
        first + self.end.as_ref().map_or(0, Rope::len)
    }
}

/// Where every mark and part ended up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout<M> {
    /// Mark and its byte offset in the object, in the object's order.
    pub marks: Vec<(M, u64)>,
    pub size_bytes: u64,
}

#[derive(Debug, Clone)]
pub struct Spine<M> {
    /// Slot 0 is the head, finished last.
    slots: Vec<Slot<M>>,
    shipped: BTreeMap<u32, (u64, Vec<(u64, M)>)>,
    budget_bytes: u64,
    /// The smallest part the store accepts, the last one aside.
    min_part_bytes: u64,
    padding: fn(u64) -> Bytes,
}

impl<M: Clone> Spine<M> {
    /// `units`: each unit's part numbers, in the object's order, from 2 on. `padding` makes a block of at least
    /// so many bytes that readers skip.
    pub fn new(
        units: impl IntoIterator<Item = Range<u32>>,
        budget_bytes: u64,
        min_part_bytes: u64,
        padding: fn(u64) -> Bytes,
    ) -> Self {
        let head = Slot { end_number: 1, parts: 1..2, used: 0, beginning: Beginning::Settled, end: None };
        let units = units.into_iter().map(|parts| Slot {
            end_number: parts.end - 1,
            parts,
            used: 0,
            beginning: Beginning::Open,
            end: None,
        });
        Self {
            slots: std::iter::once(head).chain(units).collect(),
            shipped: BTreeMap::new(),
            budget_bytes,
            min_part_bytes,
            padding,
        }
    }

    /// A unit's first part is full (at least S3's smallest part). Units count from 1.
    pub fn begin(&mut self, unit: usize, first: Rope<M>) -> Vec<Shipment> {
        let mut shipments = Vec::new();
        let fits = unit == 1 || self.held_bytes() + first.len() <= self.budget_bytes;
        let before_is_done = self.is_settled(unit - 1) && self.slots[unit - 1].end.is_some();
        if before_is_done || fits {
            self.slots[unit].beginning = Beginning::Held(first);
            self.settle(unit - 1, &mut shipments);
        } else {
            let number = self.slots[unit].parts.start;
            self.slots[unit].beginning = Beginning::Settled;
            self.ship(number, first, &mut shipments);
        }
        shipments
    }

    /// The next part number of a unit that has begun, and how many it has used of how many.
    pub fn next_part(&mut self, unit: usize) -> Result<u32, PartsExhausted> {
        // The first number is the first part's, the last one the end's.
        let slot = &mut self.slots[unit];
        let available = (slot.parts.len() as u32).saturating_sub(2);
        if slot.used >= available {
            return Err(PartsExhausted { unit, available });
        }
        slot.used += 1;
        Ok(slot.parts.start + slot.used)
    }

    /// Numbers used and available, for [`crate::plan::export::part_size_at`].
    pub fn usage(&self, unit: usize) -> (u32, u32) {
        let slot = &self.slots[unit];
        (slot.used, (slot.parts.len() as u32).saturating_sub(2))
    }

    /// A part with a number from [`Self::next_part`].
    pub fn fill(&mut self, part_number: u32, rope: Rope<M>) -> Shipment {
        let mut shipments = Vec::with_capacity(1);
        self.ship(part_number, rope, &mut shipments);
        shipments.remove(0)
    }

    /// A unit is complete; `end` is what no part has taken yet.
    pub fn finish(&mut self, unit: usize, end: Rope<M>) -> Vec<Shipment> {
        let mut shipments = Vec::new();
        self.slots[unit].end = Some(end);
        if unit > 0 {
            self.settle(unit - 1, &mut shipments);
        }
        self.settle(unit, &mut shipments);
        self.relieve(&mut shipments);
        shipments
    }

    /// Where everything will lie once a head of `head_len` bytes is in place. All units have to be finished.
    pub fn layout(&self, head_len: u64) -> Layout<M> {
        let mut finished = self.clone();
        let mut head = Rope::default();
        head.push(Bytes::from(vec![0; head_len as usize]));
        finished.finish(0, head);
        let (mut marks, mut offset) = (Vec::new(), 0);
        for (len, part_marks) in finished.shipped.values() {
            marks.extend(part_marks.iter().map(|(at, mark)| (mark.clone(), offset + at)));
            offset += len;
        }
        Layout { marks, size_bytes: offset }
    }

    /// Bytes that wait for a neighbour.
    pub fn held_bytes(&self) -> u64 {
        self.slots.iter().map(Slot::held_bytes).sum()
    }

    fn is_settled(&self, slot: usize) -> bool {
        matches!(self.slots[slot].beginning, Beginning::Settled)
    }

    /// Joins the end of `slot` with the beginning of the next, as far along as that goes.
    fn settle(&mut self, mut slot: usize, shipments: &mut Vec<Shipment>) {
        while self.is_settled(slot) && self.slots[slot].end.is_some() {
            let own_number = self.slots[slot].end_number;
            if slot + 1 == self.slots.len() {
                // The last part of the object may have any size.
                let end = self.take_end(slot);
                self.ship(own_number, end, shipments);
                return;
            }
            // An end that is empty may have been padded and shipped under its own number before.
            let end_is_empty = self.slots[slot].end.as_ref().is_none_or(Rope::is_empty);
            let next = &mut self.slots[slot + 1];
            let number = if end_is_empty { next.parts.start } else { own_number };
            match std::mem::replace(&mut next.beginning, Beginning::Settled) {
                Beginning::Settled => {
                    let end = self.take_end(slot);
                    self.ship_padded(own_number, end, shipments);
                    return;
                }
                Beginning::Held(first) => {
                    let mut joint = self.take_end(slot);
                    joint.append(first);
                    self.ship(number, joint, shipments);
                }
                Beginning::Open => {
                    let Some(whole) = next.end.take() else {
                        next.beginning = Beginning::Open;
                        return;
                    };
                    let mut joint = self.take_end(slot);
                    joint.append(whole);
                    if joint.len() >= self.min_part_bytes {
                        self.ship(number, joint, shipments);
                        joint = Rope::default();
                    } else if !end_is_empty {
                        self.slots[slot + 1].end_number = number;
                    }
                    self.slots[slot + 1].end = Some(joint);
                }
            }
            slot += 1;
        }
    }

    /// Pads ends that wait, largest (cheapest to pad) first, until what is held fits the budget.
    fn relieve(&mut self, shipments: &mut Vec<Shipment>) {
        while self.held_bytes() > self.budget_bytes {
            // Unit 1 waits for the head in any case.
            let waiting = (2..self.slots.len())
                .filter(|&i| self.slots[i].end.as_ref().is_some_and(|end| !end.is_empty()))
                .max_by_key(|&i| self.slots[i].end.as_ref().map_or(0, Rope::len));
            let Some(slot) = waiting else { return };
            let number = self.slots[slot].end_number;
            let whole_unit = matches!(self.slots[slot].beginning, Beginning::Open);
            if whole_unit {
                self.slots[slot].beginning = Beginning::Settled;
            }
            let end = self.take_end(slot);
            self.ship_padded(number, end, shipments);
            // Nothing of it waits any more: whoever comes next starts afresh.
            self.slots[slot].end = Some(Rope::default());
            if whole_unit {
                self.settle(slot - 1, shipments);
            }
            self.settle(slot, shipments);
        }
    }

    fn take_end(&mut self, slot: usize) -> Rope<M> {
        self.slots[slot].end.replace(Rope::default()).unwrap_or_default()
    }

    fn ship_padded(&mut self, number: u32, mut rope: Rope<M>, shipments: &mut Vec<Shipment>) {
        if !rope.is_empty() && rope.len() < self.min_part_bytes {
            rope.push((self.padding)(self.min_part_bytes - rope.len()));
        }
        self.ship(number, rope, shipments);
    }

    fn ship(&mut self, part_number: u32, rope: Rope<M>, shipments: &mut Vec<Shipment>) {
        if rope.is_empty() {
            debug_assert!(rope.marks.is_empty(), "a mark belongs to bytes of its own rope");
            return;
        }
        let replaced = self.shipped.insert(part_number, (rope.len, rope.marks));
        debug_assert!(replaced.is_none(), "part {part_number} shipped twice");
        shipments.push(Shipment { part_number, chunks: rope.chunks, len: rope.len });
    }
}

#[cfg(test)]
mod tests {
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
}
