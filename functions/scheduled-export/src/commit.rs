//! Makes the backup exist: head, completion, read-back, manifest. In this order, so that a crash leaves nothing listed.

use std::collections::BTreeMap;
use std::time::Instant;

use futures::future::try_join_all;
use holdfast_shared::archive::codec::{put_large_objects_block, put_table_block};
use holdfast_shared::archive::spine::Layout;
use holdfast_shared::archive::toc::{Offset, Toc, head_checksum};
use holdfast_shared::config::ExportConfig;
use holdfast_shared::domain::manifest::{
    Artifact, Durations, LargeObjects, MANIFEST_VERSION, Manifest, Piece, Server, Source as ManifestSource, State,
    Table, Verified,
};
use holdfast_shared::domain::{BackupId, ObjectKey};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::postgres::connect::Connector;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::upload::{Stored, Upload};
use holdfast_shared::store::{PutOutcome, Store};
use jiff::Timestamp;
use serde_json::json;

use crate::assembly::Mark;
use crate::carry_out::Carried;
use crate::keeper::Ledger;
use crate::observe::Observed;
use crate::read::Source;
use crate::request::ExportRequest;

/// Data blocks whose beginnings are read back, spread over the object.
const BLOCKS_READ_BACK: usize = 8;

pub struct Committing<'a> {
    pub config: &'a ExportConfig,
    pub store: &'a Store,
    pub connector: &'a Connector,
    pub request: &'a ExportRequest,
    pub id: BackupId,
    pub observed: &'a Observed,
    pub started: Instant,
    pub data_began: Instant,
    /// The ETag of what an earlier attempt at this id left under the key.
    pub replaces: Option<String>,
    pub ledger: &'a Ledger,
}

/// Where one entry's block lies, and its pieces.
#[derive(Debug, Default, Clone)]
struct Placed {
    start: u64,
    end: u64,
    pieces: Vec<Piece>,
}

impl Committing<'_> {
    pub async fn commit(&self, carried: &Carried, upload: &Upload) -> Result<Manifest, Fault> {
        let commit_began = Instant::now();
        let mut toc = self.observed.toc.clone();
        toc.header.compression = self.observed.compression.header();
        // Offsets have a fixed width: the head's length is known before they are.
        let head_len = toc.render().len() as u64;
        let layout = carried.work.assembly.layout(head_len);
        let placed = place(&layout, self.observed.entries.len());
        for (entry, place) in self.observed.entries.iter().zip(&placed) {
            toc.entries[entry.toc_index].offset = Offset::Set(place.start);
        }
        let head = toc.render();
        carried.work.assembly.finish_head(head.clone()).await?;

        let condition = self.replaces.as_deref().map_or(Condition::Absent, Condition::Etag);
        let stored = upload.complete(condition).await.map_err(|error| {
            if error.is_precondition_failed() {
                Fault::new("backup-already-stored", format!("another object lies at {}", upload.key()))
                    .hint("it belongs to no listed backup; the next run takes another id")
            } else {
                error.into()
            }
        })?;
        self.read_back(&stored, layout.size_bytes, &head, &toc, &placed).await?;

        // No manifest without the lease: whoever took it over may be replacing the object that was just read.
        self.ledger.record(None).await;
        let manifest = self.manifest(carried, &stored, placed, &toc, commit_began);
        let key = ObjectKey::Manifest(self.id);
        match self.store.put_if(&key, manifest.render().into(), Condition::Absent).await? {
            PutOutcome::Written { .. } => Ok(manifest),
            PutOutcome::Refused => Err(Fault::new("backup-already-exists", format!("{key} is there already"))),
        }
    }

    /// The stored object is what was sent, and a reader finds its way in it.
    async fn read_back(
        &self,
        stored: &Stored,
        size: u64,
        head: &[u8],
        toc: &Toc,
        placed: &[Placed],
    ) -> Result<(), Fault> {
        let differs = |what: String| Fault::new("read-back-differs", format!("{}: {what}", stored.key));
        let facts = self.store.head_present(&stored.key).await?.ok_or_else(|| differs("it is not there".to_owned()))?;
        if facts.size_bytes != size || stored.size_bytes != size {
            return Err(differs(format!("{} bytes are stored, {size} were sent", facts.size_bytes)));
        }
        if stored.checksum_header.is_some() && facts.checksum != stored.checksum_header {
            return Err(differs(format!(
                "checksum {:?} is stored, {:?} was sent",
                facts.checksum, stored.checksum_header
            )));
        }
        // The current version is ours: the key is claimed, and reading a named version would take one right more.
        let read = self.store.get_range(&stored.key, None, 0, head.len() as u64).await?;
        let (read_toc, _) = Toc::read(read.as_ref()).map_err(|error| differs(chain(&error)))?;
        if read != head || read_toc != *toc {
            return Err(differs("its table of contents is not the one written".to_owned()));
        }
        let step = placed.len().div_ceil(BLOCKS_READ_BACK).max(1);
        let last = placed.len().checked_sub(1);
        let chosen = (0..placed.len()).filter(|index| index % step == 0 || Some(*index) == last);
        try_join_all(chosen.map(|index| async move {
            let mut expected = Vec::new();
            let dump_id = toc.entries[self.observed.entries[index].toc_index].dump_id;
            match self.observed.sources[index] {
                Source::Table(_) => put_table_block(&mut expected, dump_id),
                Source::LargeObjects { .. } => put_large_objects_block(&mut expected, dump_id),
            }
            let start = placed[index].start;
            let found = self.store.get_range(&stored.key, None, start, expected.len() as u64).await?;
            if found == expected {
                Ok(())
            } else {
                Err(differs(format!("no data block of entry {dump_id} at offset {start}")))
            }
        }))
        .await
        .map(|_| ())
    }

    fn manifest(
        &self,
        carried: &Carried,
        stored: &Stored,
        placed: Vec<Placed>,
        toc: &Toc,
        commit_began: Instant,
    ) -> Manifest {
        let Observed { facts, compression, pg_dump, warnings, .. } = self.observed;
        let mut tables = Vec::new();
        let mut large_objects: Option<LargeObjects> = None;
        for ((source, digest), place) in self.observed.sources.iter().zip(&carried.digests).zip(placed) {
            match source {
                Source::Table(table) => tables.push(Table {
                    schema: table.name.schema.clone(),
                    name: table.name.name.clone(),
                    rows: digest.rows,
                    bytes: digest.bytes,
                    fingerprint: digest.fingerprint,
                    columns: table.column_names(),
                    condition: table.condition.clone(),
                    offset: place.start,
                    length: place.end - place.start,
                    pieces: place.pieces,
                }),
                Source::LargeObjects { .. } => {
                    let mut all = holdfast_shared::domain::TableDigest::default();
                    if let Some(objects) = &large_objects {
                        all.rows = objects.count;
                        all.bytes = objects.bytes;
                        all.fingerprint = objects.fingerprint;
                    }
                    all.merge(digest);
                    large_objects =
                        Some(LargeObjects { count: all.rows, bytes: all.bytes, fingerprint: all.fingerprint });
                }
            }
        }
        let now = Timestamp::now();
        let total = self.started.elapsed().as_secs_f64();
        let rows: u64 = tables.iter().map(|table| table.rows).sum();
        let instance = self.config.database.instance.clone();
        let target = self.connector.target();
        let artifact = Artifact {
            key: stored.key.clone(),
            version_id: stored.version_id.clone(),
            size_bytes: stored.size_bytes,
            checksum: stored.checksum.clone(),
            head_checksum: Some(head_checksum(&toc.render())),
            compression: compression.to_string(),
            archive_version: toc.header.version.to_string(),
            pg_restore_major: toc.header.version.pg_restore_major().max(facts.major()),
            pg_dump_version: pg_dump.version.clone(),
        };
        let summary = json!({
            "path": self.store.uri(&ObjectKey::Dump(self.id)),
            "size_mb": stored.size_bytes.div_ceil(1024 * 1024),
            "record_count": rows,
            "tables_exported": tables.len(),
        });
        Manifest {
            timestamp: self.id,
            export_date: self.id.date(),
            source: ManifestSource {
                kind: if instance.is_some() { "rds" } else { "postgresql" }.to_owned(),
                instance: instance.unwrap_or_else(|| target.host.clone()),
                database: facts.database.clone(),
                snapshot_id: self.observed.snapshot.clone(),
            },
            exports: BTreeMap::from([("dump".to_owned(), summary)]),
            databases_created: BTreeMap::new(),
            export_duration_minutes: (total / 60.0).ceil() as u64,
            export_complete: now,
            manifest_version: MANIFEST_VERSION,
            state: State::Complete,
            environment: self.config.environment.clone(),
            purpose: self.request.purpose.clone(),
            notes: self.request.notes.clone(),
            created_by: self.request.created_by.clone(),
            event_key: self.request.event_key.clone(),
            server: Server {
                version: facts.version.clone(),
                major: facts.major(),
                system_identifier: facts.system_identifier.clone(),
                wal_lsn: facts.wal_lsn.clone(),
                role: if facts.in_recovery { "standby" } else { "primary" }.to_owned(),
                encoding: facts.encoding.clone(),
            },
            artifacts: BTreeMap::from([("dump".to_owned(), artifact)]),
            selection: self.request.selection.clone(),
            tables,
            large_objects,
            schema_fingerprint: toc.fingerprint(),
            durations_seconds: Durations {
                to_first_row: carried.work.seconds_to_first_row(),
                data: commit_began.duration_since(self.data_began).as_secs_f64(),
                commit: commit_began.elapsed().as_secs_f64(),
                total,
            },
            warnings: warnings.clone(),
            verified: Some(Verified { at: now, by: "read-back".to_owned() }),
        }
    }
}

fn place(layout: &Layout<Mark>, entries: usize) -> Vec<Placed> {
    let mut placed = vec![Placed::default(); entries];
    for &(mark, at) in &layout.marks {
        match mark {
            Mark::BlockStart { entry } => placed[entry].start = at,
            Mark::BlockEnd { entry } => placed[entry].end = at,
            Mark::SegmentEnd { entry, length, bytes, rows } => {
                placed[entry].pieces.push(Piece { offset: at - length, length, bytes, rows });
            }
        }
    }
    placed
}
