//! Manifests from the newest to the oldest, listed day by day and read several at a time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use holdfast_shared::domain::manifest::State;
use holdfast_shared::domain::{BackupId, Manifest, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::store::list::Listed;
use holdfast_shared::store::{Store, StoreError};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::{MAX_MANIFEST_BYTES, Unfit, checked};

const METADATA: &str = "postgres-exports/metadata/";
/// So many backups are looked at. Tombstones, which are kept for ever, and what is no backup of ours are not counted.
const MOST: usize = 5_000;
/// Rather than the whole of an invocation's time.
const LONGEST: Duration = Duration::from_secs(60);
/// So many manifests are read at once: a day's, where every hour has one.
const AT_ONCE: usize = 24;
/// Of those that are held read, as long as there is more than one.
const MOST_BYTES: u64 = 8 << 20;

/// What came of reading one; `None` where it is gone.
type Read = Result<Option<(Bytes, String)>, StoreError>;

/// The backups under a prefix, tombstones left out. Manifests that are not what they should be are told and passed over.
pub struct Newest<'a> {
    store: &'a Store,
    before: Option<Timestamp>,
    /// Days that have not been listed, the last one next.
    days: Vec<Date>,
    /// Listed and not read, with their sizes, the last one next.
    listed: Vec<(BackupId, u64)>,
    /// Read and not looked at, the last one next.
    read: Vec<(BackupId, Read)>,
    at_once: usize,
    found: usize,
    began: Instant,
    /// The day that was reached when the search was given up.
    pub gave_up_at: Option<Date>,
    pub warnings: Vec<String>,
}

impl<'a> Newest<'a> {
    pub async fn new(store: &'a Store, before: Option<Timestamp>) -> Result<Self, Fault> {
        let began = Instant::now();
        let folders = store.list_level(METADATA).await?.folders;
        let last_day = before.map(|before| before.to_zoned(TimeZone::UTC).date());
        let day = |folder: &String| folder.strip_suffix('/')?.rsplit('/').next()?.parse::<Date>().ok();
        let mut days: Vec<Date> = folders.iter().filter_map(day).collect();
        days.retain(|day| last_day.is_none_or(|last| *day <= last));
        days.sort_unstable();
        Ok(Self {
            store,
            before,
            days,
            listed: Vec::new(),
            read: Vec::new(),
            // The first one will do, as a rule.
            at_once: 1,
            found: 0,
            began,
            gave_up_at: None,
            warnings: Vec::new(),
        })
    }

    /// The next older one; `None` where there is none, or the search was given up.
    pub async fn next(&mut self) -> Result<Option<Manifest>, Fault> {
        loop {
            let Some((id, read)) = self.read.pop() else {
                if self.read_on().await? {
                    continue;
                }
                return Ok(None);
            };
            // Gone between listing and reading: manifests are never deleted, and so it is nobody's backup.
            let Some((json, _)) = read? else { continue };
            match checked(self.store, id, &json) {
                Ok(manifest) if manifest.state == State::Expired => {}
                Ok(_) if self.found == MOST => {
                    self.gave_up_at = Some(id.timestamp().to_zoned(TimeZone::UTC).date());
                    return Ok(None);
                }
                Ok(manifest) => {
                    self.found += 1;
                    return Ok(Some(manifest));
                }
                // Nothing is wrong with it: it is just no backup for this.
                Err(Unfit::NotRestorable) => {}
                Err(Unfit::Problem(problem)) => {
                    self.warn(format!("{} is passed over: {problem}", ObjectKey::Manifest(id)));
                }
            }
        }
    }

    /// Reads the next ones; whether there were any.
    async fn read_on(&mut self) -> Result<bool, Fault> {
        while self.listed.is_empty() {
            let Some(day) = self.days.pop() else { return Ok(false) };
            if self.began.elapsed() > LONGEST {
                self.gave_up_at = Some(day);
                return Ok(false);
            }
            self.list(day).await?;
        }
        let (mut ids, mut bytes) = (Vec::new(), 0);
        while let Some((id, size)) = self.listed.last().copied() {
            bytes += size;
            if !ids.is_empty() && (ids.len() == self.at_once || bytes > MOST_BYTES) {
                break;
            }
            ids.push(id);
            self.listed.pop();
        }
        self.at_once = (2 * self.at_once).min(AT_ONCE);
        let store = self.store;
        let reading = ids.iter().map(|id| async move { store.get_present(&ObjectKey::Manifest(*id)).await });
        let read = join_all(reading).await;
        self.read.extend(ids.into_iter().zip(read));
        self.read.reverse();
        Ok(true)
    }

    async fn list(&mut self, day: Date) -> Result<(), Fault> {
        for object in self.store.list_level(&format!("{METADATA}{day}/")).await?.objects {
            match self.id_of(&object) {
                Some(id) if self.before.is_some_and(|before| id.timestamp() >= before) => {}
                Some(id) => self.listed.push((id, object.size_bytes)),
                None => self.warn(format!("{} is passed over: it is no manifest", object.key)),
            }
        }
        self.listed.sort_unstable();
        Ok(())
    }

    fn id_of(&self, object: &Listed) -> Option<BackupId> {
        let name = object.key.rsplit('/').next()?.strip_suffix(".json")?;
        let id: BackupId = name.parse().ok()?;
        let is_its_own = object.key == self.store.key(&ObjectKey::Manifest(id));
        (is_its_own && object.size_bytes <= MAX_MANIFEST_BYTES).then_some(id)
    }

    fn warn(&mut self, warning: String) {
        tracing::warn!(warning, "while looking for the newest backup");
        self.warnings.push(warning);
    }
}
