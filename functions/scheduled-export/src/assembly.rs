//! What the workers share: the order of the object, the units' states, the upload and its limits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use holdfast_shared::archive::codec::{Adler, padding_block};
use holdfast_shared::archive::spine::{Layout, PartsExhausted, Rope, Shipment, Spine};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::export::{ExportPlan, MIN_PART_SIZE_BYTES, part_size_at};
use holdfast_shared::store::upload::Upload;
use tokio::sync::{OwnedMutexGuard, Semaphore};
use tokio::task::JoinSet;

use crate::buffers::Buffers;

/// What one batch of text may add to a part after it is full.
const BATCH_ROOM_BYTES: usize = 512 * 1024;

/// What is remembered of a place in the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// An entry's block begins here.
    BlockStart { entry: usize },
    /// It ends here.
    BlockEnd { entry: usize },
    /// A run of whole rows, `length` bytes long, ends here.
    SegmentEnd { entry: usize, length: u64, bytes: u64, rows: u64 },
}

struct UnitState {
    begun: bool,
    /// Pieces that are not done yet.
    outstanding: usize,
    /// Ends shorter than a part, of writers that have left.
    pool: Rope<Mark>,
    pool_adlers: Vec<Adler>,
    /// The segments' checksums by the part they end in: the order in which they lie in the object.
    adlers: BTreeMap<u32, Vec<Adler>>,
    /// Held while a row is in one part and goes on in the next: nobody else's part may come between.
    row_gate: Arc<tokio::sync::Mutex<()>>,
}

struct State {
    spine: Spine<Mark>,
    units: Vec<UnitState>,
}

pub struct Assembly {
    state: Mutex<State>,
    upload: Arc<Upload>,
    permits: Arc<Semaphore>,
    transfers: tokio::sync::Mutex<JoinSet<Result<(), Fault>>>,
    part_size_bytes: u64,
    buffers: Arc<Buffers>,
    pub progress: Progress,
}

/// Counters for progress lines.
#[derive(Default)]
pub struct Progress {
    pub rows: AtomicU64,
    pub text_bytes: AtomicU64,
    pub stored_bytes: AtomicU64,
}

/// Where a writer's next part may go.
pub enum Place {
    /// Wherever the unit is.
    Next,
    /// Right behind the part before, because a row runs over.
    Reserved(Reserved),
}

/// The number behind a writer's last part, and the right to go on behind it.
pub struct Reserved {
    number: u32,
    gate: OwnedMutexGuard<()>,
}

impl Assembly {
    pub fn new(plan: &ExportPlan, upload: Arc<Upload>) -> Self {
        let padding = |len| Bytes::from(padding_block(len));
        let ranges = plan.units.iter().map(|unit| unit.parts.clone());
        let units = plan.units.iter().map(|unit| UnitState {
            begun: false,
            outstanding: unit.content.pieces(),
            pool: Rope::default(),
            pool_adlers: Vec::new(),
            adlers: BTreeMap::new(),
            row_gate: Arc::default(),
        });
        Self {
            state: Mutex::new(State {
                spine: Spine::new(ranges, plan.seam_budget_bytes, MIN_PART_SIZE_BYTES, padding),
                units: units.collect(),
            }),
            upload,
            permits: Arc::new(Semaphore::new(plan.uploads_in_flight)),
            transfers: tokio::sync::Mutex::new(JoinSet::new()),
            part_size_bytes: plan.part_size_bytes,
            buffers: Buffers::new(
                plan.part_size_bytes as usize + BATCH_ROOM_BYTES,
                plan.workers + plan.uploads_in_flight,
            ),
            progress: Progress::default(),
        }
    }

    pub fn buffers(&self) -> Arc<Buffers> {
        Arc::clone(&self.buffers)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How large the unit's next part should be.
    pub fn part_size(&self, unit: usize) -> u64 {
        let (used, available) = self.lock().spine.usage(unit + 1);
        part_size_at(self.part_size_bytes, used, available)
    }

    /// Sends a part on its way. With `continues`, the number behind it is kept for what follows, and returned.
    pub async fn put(
        &self,
        unit: usize,
        place: Place,
        rope: Rope<Mark>,
        adlers: Vec<Adler>,
        prefix: impl FnOnce() -> Rope<Mark>,
        continues: bool,
    ) -> Result<Option<Reserved>, Fault> {
        let (number, gate) = match place {
            Place::Reserved(Reserved { number, gate }) => (Some(number), gate),
            Place::Next => (None, self.row_gate(unit).await),
        };
        let (shipments, reserved) = {
            let mut state = self.lock();
            let State { spine, units } = &mut *state;
            let own = &mut units[unit];
            let shipments = match number {
                Some(number) => {
                    own.adlers.entry(number).or_default().extend(adlers);
                    vec![spine.fill(number, rope)]
                }
                None if own.begun => {
                    let number = spine.next_part(unit + 1).map_err(exhausted)?;
                    own.adlers.entry(number).or_default().extend(adlers);
                    vec![spine.fill(number, rope)]
                }
                None => {
                    own.begun = true;
                    own.adlers.entry(0).or_default().extend(adlers);
                    let mut first = prefix();
                    first.append(rope);
                    spine.begin(unit + 1, first)
                }
            };
            let number = continues.then(|| spine.next_part(unit + 1).map_err(exhausted)).transpose()?;
            (shipments, number.map(|number| Reserved { number, gate }))
        };
        self.transfer(shipments).await?;
        Ok(reserved)
    }

    /// A writer leaves the unit with an end that no part has taken, having done `pieces` of its pieces. The last
    /// one gets everything that is left, to close the unit with [`Self::finish`].
    pub async fn leave(
        &self,
        unit: usize,
        end: Rope<Mark>,
        adlers: Vec<Adler>,
        pieces: usize,
        prefix: impl FnOnce() -> Rope<Mark>,
    ) -> Result<Option<(Rope<Mark>, Adler)>, Fault> {
        let part_size = self.part_size(unit);
        let gate = self.row_gate(unit).await;
        let (shipments, closing) = {
            let mut state = self.lock();
            let State { spine, units } = &mut *state;
            let own = &mut units[unit];
            own.outstanding = own.outstanding.saturating_sub(pieces);
            own.pool.append(end);
            own.pool_adlers.extend(adlers);
            // One that has done nothing may leave late, when the unit is closed already.
            let closing = own.outstanding == 0 && pieces > 0;
            let mut shipments = Vec::new();
            if own.pool.len() >= part_size {
                let (rope, adlers) = (std::mem::take(&mut own.pool), std::mem::take(&mut own.pool_adlers));
                let number = if own.begun {
                    let number = spine.next_part(unit + 1).map_err(exhausted)?;
                    shipments.push(spine.fill(number, rope));
                    number
                } else {
                    own.begun = true;
                    let mut first = prefix();
                    first.append(rope);
                    shipments = spine.begin(unit + 1, first);
                    0
                };
                own.adlers.entry(number).or_default().extend(adlers);
            } else if closing && !own.begun {
                own.begun = true;
                let mut whole = prefix();
                whole.append(std::mem::take(&mut own.pool));
                own.pool = whole;
            }
            let closing = closing.then(|| {
                let adlers = own.adlers.values().flatten().chain(&own.pool_adlers);
                let rows = adlers.fold(Adler::default(), |rows, &segment| rows.then(segment));
                (std::mem::take(&mut own.pool), rows)
            });
            (shipments, closing)
        };
        drop(gate);
        self.transfer(shipments).await?;
        Ok(closing)
    }

    async fn row_gate(&self, unit: usize) -> OwnedMutexGuard<()> {
        let gate = Arc::clone(&self.lock().units[unit].row_gate);
        gate.lock_owned().await
    }

    /// The unit is complete.
    pub async fn finish(&self, unit: usize, end: Rope<Mark>) -> Result<(), Fault> {
        let shipments = self.lock().spine.finish(unit + 1, end);
        self.transfer(shipments).await
    }

    /// Where everything lies, once a head of this length stands before it.
    pub fn layout(&self, head_len: u64) -> Layout<Mark> {
        self.lock().spine.layout(head_len)
    }

    /// Sends the head, and waits for every part.
    pub async fn finish_head(&self, head: Vec<u8>) -> Result<(), Fault> {
        let mut rope = Rope::default();
        rope.push(Bytes::from(head));
        let shipments = self.lock().spine.finish(0, rope);
        self.transfer(shipments).await?;
        let mut transfers = self.transfers.lock().await;
        while let Some(done) = transfers.join_next().await {
            finished(done)?;
        }
        Ok(())
    }

    /// Waits while too many parts are under way, then sends on: memory is bounded by the permits.
    async fn transfer(&self, shipments: Vec<Shipment>) -> Result<(), Fault> {
        for shipment in shipments {
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            let mut transfers = self.transfers.lock().await;
            // A part that failed fails the run with the next one, not at the end.
            while let Some(done) = transfers.try_join_next() {
                finished(done)?;
            }
            let upload = Arc::clone(&self.upload);
            self.progress.stored_bytes.fetch_add(shipment.len, Ordering::Relaxed);
            transfers.spawn(async move {
                let _permit = permit;
                upload.put_part(shipment.part_number, shipment.chunks).await.map_err(Fault::from)
            });
        }
        Ok(())
    }
}

fn finished(done: Result<Result<(), Fault>, tokio::task::JoinError>) -> Result<(), Fault> {
    done.unwrap_or_else(|panic| Err(Fault::from_error("internal", &panic)))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn exhausted(error: PartsExhausted) -> Fault {
    Fault::from_error("upload-parts-exhausted", &error).hint("raise PART_SIZE_BYTES")
}
