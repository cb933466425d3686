//! Puts one object together from units that are produced at the same time, by the rules of a multipart upload.
//!
//! The object is *head, unit 1, unit 2, …*. Each unit is a run of parts of its own; what is left at its end is
//! shorter than S3's smallest part, so it is joined with the beginning of the next unit, which is held back for
//! that. Where holding back would take too much memory, the end is filled up with a padding block instead.
//! Pure: bytes in, [`Shipment`]s out.

mod rope;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

pub use rope::Rope;

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
