//! What dead runs have left behind: artifacts without a manifest, uploads, pins and leases.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::domain::{ArtifactKey, ArtifactKind, BackupId, KeyPrefix, Pin};

/// An object under a folder of artifacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub key: String,
    pub size_bytes: u64,
    pub etag: String,
    pub last_modified: Timestamp,
}

/// An artifact of a backup that has no manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Orphan {
    /// The object, or a folder that ends with a slash.
    pub key: String,
    pub backup_id: BackupId,
    pub kind: ArtifactKind,
    pub size_bytes: u64,
    pub objects: usize,
    pub last_modified: Timestamp,
    /// Of a single object: it is removed as it was found, or not at all.
    pub etag: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OrphanPlan {
    /// Seen for the first time, or changed since: people are told.
    pub report: Vec<Orphan>,
    /// Told, and not removed yet.
    pub wait: Vec<Orphan>,
    /// Told long enough ago, and unchanged since.
    pub remove: Vec<Orphan>,
    /// Keys in our folders that no release of this project writes. They are left alone.
    pub strangers: Vec<String>,
    /// Why nothing is removed although there is something to remove.
    pub refused: Option<String>,
}

/// What an earlier run has said of an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// When it had last been changed.
    pub last_modified: Timestamp,
    pub at: Timestamp,
    /// It was seen when the manifests may have been what was missing.
    pub doubted: bool,
}

/// What is known of the bucket besides the artifacts themselves.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    pub prefix: &'a KeyPrefix,
    /// Every backup that has a manifest, readable or not.
    pub manifests: &'a BTreeSet<BackupId>,
    pub pins: &'a [Pin],
    /// Backups that are being made over hours, by RDS.
    pub working: &'a BTreeSet<BackupId>,
    pub reported: &'a BTreeMap<String, Reported>,
    pub now: Timestamp,
    pub age: SignedDuration,
    /// Remove also what looks like lost manifests.
    pub override_anomaly: bool,
}

/// So many orphans are no anomaly where there are more manifests.
const FEW: usize = 10;
/// So long people have to look at what they were told of. Less than a day, so that the next night's run removes it; and far more than
/// it takes Lambda to try a run that failed again.
const NOTICE: SignedDuration = SignedDuration::from_hours(20);
/// What the older scripts keep beside the artifacts.
const LATEST: &str = "postgres-exports/sql/latest.sql.gz";

/// A manifest that is gone makes an orphan of a good backup, and many at once look like lost manifests rather than
/// dead runs: then nothing is removed, and none of these ever is unless somebody says so. New backups bring new
/// manifests, but not those that were lost.
pub fn plan_orphans(found: &[Found], surroundings: &Surroundings<'_>) -> OrphanPlan {
    let mut plan = OrphanPlan::default();
    let mut orphans: BTreeMap<String, Orphan> = BTreeMap::new();
    for object in found {
        let Some(owner) = ArtifactKey::parse(&object.key, surroundings.prefix) else {
            if object.key.strip_prefix(surroundings.prefix.as_str()) != Some(LATEST) && !object.key.ends_with('/') {
                plan.strangers.push(object.key.clone());
            }
            continue;
        };
        if surroundings.manifests.contains(&owner.backup_id) || surroundings.working.contains(&owner.backup_id) {
            continue;
        }
        let etag = (!owner.is_folder()).then(|| object.etag.clone());
        let orphan = orphans.entry(owner.key.clone()).or_insert_with(|| Orphan {
            key: owner.key,
            backup_id: owner.backup_id,
            kind: owner.kind,
            size_bytes: 0,
            objects: 0,
            last_modified: object.last_modified,
            etag,
        });
        orphan.size_bytes += object.size_bytes;
        orphan.objects += 1;
        orphan.last_modified = orphan.last_modified.max(object.last_modified);
    }
    let pinned =
        |id: BackupId| surroundings.pins.iter().any(|pin| pin.backup_id == id && pin.is_active(surroundings.now));
    for orphan in orphans.into_values() {
        if surroundings.now.duration_since(orphan.last_modified) <= surroundings.age || pinned(orphan.backup_id) {
            continue;
        }
        let reported = surroundings.reported.get(&orphan.key).filter(|r| r.last_modified == orphan.last_modified);
        match reported {
            None => plan.report.push(orphan),
            Some(reported) if surroundings.now.duration_since(reported.at) < NOTICE => plan.wait.push(orphan),
            Some(_) => plan.remove.push(orphan),
        }
    }
    if surroundings.override_anomaly {
        return plan;
    }
    let all = || plan.report.iter().chain(&plan.wait).chain(&plan.remove);
    let (count, manifests) = (all().count(), surroundings.manifests.len());
    let doubted = all().any(|orphan| surroundings.reported.get(&orphan.key).is_some_and(|reported| reported.doubted));
    let lost = count > 0 && count >= manifests || count > FEW.max(manifests / 10);
    if lost || doubted {
        let since = if lost { "" } else { ", and were fewer when the first of these were found" };
        plan.refused = Some(format!(
            "{count} artifacts have no manifest, and {manifests} backups have one{since}: the manifests may be what is missing"
        ));
        plan.wait.append(&mut plan.remove);
    }
    plan
}

/// An upload that was neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingUpload {
    pub key: String,
    pub upload_id: String,
    pub initiated: Timestamp,
}

/// Who works on a database, or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseFacts {
    pub key: String,
    pub etag: String,
    pub released: bool,
    pub expires: Timestamp,
    pub upload_id: Option<String>,
}

/// Uploads of ours that are older than the age, and that no living run's lease names.
pub fn stale_uploads(
    uploads: Vec<PendingUpload>,
    leases: &[LeaseFacts],
    surroundings: &Surroundings<'_>,
) -> Vec<PendingUpload> {
    let alive = |upload: &PendingUpload| {
        leases.iter().any(|lease| {
            !lease.released
                && lease.expires > surroundings.now
                && lease.upload_id.as_deref() == Some(upload.upload_id.as_str())
        })
    };
    let ours = |upload: &PendingUpload| {
        ArtifactKey::parse(&upload.key, surroundings.prefix).is_some_and(|key| key.kind != ArtifactKind::RdsExport)
    };
    let old = |upload: &PendingUpload| surroundings.now.duration_since(upload.initiated) > surroundings.age;
    uploads.into_iter().filter(|upload| old(upload) && ours(upload) && !alive(upload)).collect()
}

/// Leases that nobody has renewed for so long that what they named has been swept as well.
pub fn dead_leases(leases: Vec<LeaseFacts>, surroundings: &Surroundings<'_>) -> Vec<LeaseFacts> {
    leases.into_iter().filter(|lease| surroundings.now.duration_since(lease.expires) > surroundings.age).collect()
}

/// Entries of restores that wait no longer: such a one is emptied.
pub fn finished_entries(entries: Vec<Found>, surroundings: &Surroundings<'_>) -> Vec<Found> {
    let old = |entry: &Found| surroundings.now.duration_since(entry.last_modified) > surroundings.age;
    entries.into_iter().filter(|entry| entry.size_bytes == 0 && old(entry)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn found(key: &str, modified: &str) -> Found {
        Found { key: key.into(), size_bytes: 10, etag: "e".into(), last_modified: at(modified) }
    }

    #[derive(Default)]
    struct Given {
        manifests: BTreeSet<BackupId>,
        pins: Vec<Pin>,
        working: BTreeSet<BackupId>,
        reported: BTreeMap<String, Reported>,
        override_anomaly: bool,
    }

    impl Given {
        fn surroundings(&self) -> Surroundings<'_> {
            static NONE: std::sync::LazyLock<KeyPrefix> = std::sync::LazyLock::new(KeyPrefix::default);
            Surroundings {
                prefix: &NONE,
                manifests: &self.manifests,
                pins: &self.pins,
                working: &self.working,
                reported: &self.reported,
                now: at("2025-06-23T00:00:00Z"),
                age: DAY,
                override_anomaly: self.override_anomaly,
            }
        }

        fn plan(&self, found: &[Found]) -> OrphanPlan {
            plan_orphans(found, &self.surroundings())
        }
    }

    /// A bucket with some backups.
    fn given() -> Given {
        let manifests = (1..=5).map(|n| format!("2025060{n}-020000").parse().unwrap()).collect();
        Given { manifests, ..Given::default() }
    }

    fn plan(found: &[Found]) -> OrphanPlan {
        given().plan(found)
    }

    fn reported(objects: &[Found], at: &str) -> BTreeMap<String, Reported> {
        let known = |object: &Found| {
            let reported = Reported { last_modified: object.last_modified, at: at.parse().unwrap(), doubted: false };
            (object.key.clone(), reported)
        };
        objects.iter().map(known).collect()
    }

    fn counts(plan: &OrphanPlan) -> (usize, usize, usize) {
        (plan.report.len(), plan.wait.len(), plan.remove.len())
    }

    const DUMP: &str = "postgres-exports/dumps/2025-06-21/20250621-143000.dump";

    #[test]
    fn an_orphan_is_reported_first_and_removed_when_people_had_time_to_look() {
        let old = [found(DUMP, "2025-06-21T14:31:00Z")];
        assert_eq!(counts(&plan(&old)), (1, 0, 0));
        let at = |at: &str| Given { reported: reported(&old, at), ..given() };
        assert_eq!(counts(&at("2025-06-22T04:00:00Z").plan(&old)), (0, 0, 1));
        // Lambda tries a run that failed again within minutes.
        assert_eq!(counts(&at("2025-06-22T23:59:00Z").plan(&old)), (0, 1, 0));
        assert_eq!(counts(&at("2025-06-22T04:00:01Z").plan(&old)), (0, 1, 0));
        assert_eq!(counts(&at("2025-06-24T00:00:00Z").plan(&old)), (0, 1, 0), "by a clock that was ahead");
        let changed = [found(DUMP, "2025-06-21T14:32:00Z")];
        assert_eq!(counts(&at("2025-06-22T00:00:00Z").plan(&changed)), (1, 0, 0));
    }

    #[test]
    fn the_young_the_pinned_and_those_with_a_manifest_are_no_orphans() {
        assert_eq!(plan(&[found(DUMP, "2025-06-22T00:00:01Z")]), OrphanPlan::default());
        let old = [found(DUMP, "2025-06-21T14:31:00Z")];
        let id: BackupId = "20250621-143000".parse().unwrap();
        let listed = Given { manifests: BTreeSet::from([id]), ..given() };
        assert_eq!(listed.plan(&old), OrphanPlan::default());
        let pin = Pin { backup_id: id, request_id: "r".into(), purpose: "p".into(), expires: None, released: false };
        assert_eq!(Given { pins: vec![pin], ..given() }.plan(&old), OrphanPlan::default());
        let working = Given { working: BTreeSet::from([id]), ..given() };
        assert_eq!(working.plan(&old), OrphanPlan::default(), "RDS is still at it");
    }

    #[test]
    fn a_folder_is_one_orphan_as_young_as_its_youngest_object() {
        let folder = "postgres-exports/rds-exports/2025-06-21/export-20250621-143000/";
        let objects = |second: &str| {
            [found(&format!("{folder}a"), "2025-06-21T15:00:00Z"), found(&format!("{folder}shop/b"), second)]
        };
        let reported = plan(&objects("2025-06-21T16:00:00Z")).report;
        assert_eq!((reported[0].key.as_str(), reported[0].objects, &reported[0].etag), (folder, 2, &None));
        assert!(plan(&objects("2025-06-22T16:00:00Z")).report.is_empty());
    }

    #[test]
    fn strangers_are_named_and_left_alone() {
        let plan = plan(&[
            found("postgres-exports/dumps/notes.txt", "2020-01-01T00:00:00Z"),
            found("postgres-exports/sql/latest.sql.gz", "2020-01-01T00:00:00Z"),
            found("postgres-exports/dumps/", "2020-01-01T00:00:00Z"),
        ]);
        assert_eq!(plan.strangers, ["postgres-exports/dumps/notes.txt"]);
        assert!(plan.report.is_empty());
    }

    #[test]
    fn many_orphans_are_lost_manifests() {
        let many: Vec<Found> = (10..21)
            .map(|hour| {
                let key = format!("postgres-exports/dumps/2025-06-20/20250620-{hour}0000.dump");
                found(&key, "2025-06-20T22:00:00Z")
            })
            .collect();
        let mut given = Given { reported: reported(&many, "2025-06-21T00:00:00Z"), ..given() };
        given
            .manifests
            .extend((0..60).map(|n| format!("202504{:02}-0200{n:02}", n % 30 + 1).parse::<BackupId>().unwrap()));
        let refused = given.plan(&many);
        assert!(refused.refused.is_some() && counts(&refused) == (0, 11, 0));
        assert_eq!(counts(&given.plan(&many[1..])), (0, 0, 10));
        given.override_anomaly = true;
        assert_eq!(counts(&given.plan(&many)), (0, 0, 11));
    }

    /// The folder of manifests was removed; every night there is one more of the new ones.
    #[test]
    fn dumps_whose_manifests_were_lost_stay_until_somebody_says_otherwise() {
        for dumps in 1..=3 {
            let lost: Vec<Found> = (0..dumps)
                .map(|n| {
                    let key = format!("postgres-exports/dumps/2025-06-20/20250620-1{n}0000.dump");
                    found(&key, "2025-06-20T22:00:00Z")
                })
                .collect();
            for manifests in 0..30 {
                let ids = (0..manifests).map(|n| format!("20250622-0200{n:02}").parse().unwrap()).collect();
                let mut known = reported(&lost, "2025-06-21T00:00:00Z");
                let mut given = Given { manifests: ids, reported: known.clone(), ..Given::default() };
                let plan = given.plan(&lost);
                assert_eq!(plan.refused.is_some(), dumps >= manifests, "{dumps} dumps and {manifests} manifests");
                assert_eq!(plan.remove.is_empty(), dumps >= manifests);
                known.values_mut().for_each(|reported| reported.doubted = true);
                given.reported = known;
                assert_eq!(counts(&given.plan(&lost)), (0, dumps, 0), "once doubted, {manifests} manifests later");
                given.override_anomaly = true;
                assert_eq!(counts(&given.plan(&lost)), (0, 0, dumps));
            }
        }
        assert_eq!(Given::default().plan(&[]).refused, None);
    }

    #[test]
    fn uploads_and_leases_of_the_living_stay() {
        let given = Given::default();
        let surroundings = given.surroundings();
        let upload = |key: &str, id: &str, initiated: &str| PendingUpload {
            key: key.into(),
            upload_id: id.into(),
            initiated: at(initiated),
        };
        let lease = |expires: &str, id: &str| LeaseFacts {
            key: "k".into(),
            etag: "e".into(),
            released: false,
            expires: at(expires),
            upload_id: Some(id.into()),
        };
        let leases = vec![lease("2025-06-23T00:00:30Z", "living"), lease("2025-06-21T00:00:00Z", "dead")];
        let uploads = vec![
            upload(DUMP, "living", "2025-06-21T00:00:00Z"),
            upload(DUMP, "dead", "2025-06-21T00:00:00Z"),
            upload(DUMP, "young", "2025-06-22T12:00:00Z"),
            upload("files/upload.xlsx", "other", "2025-01-01T00:00:00Z"),
        ];
        let stale: Vec<String> =
            stale_uploads(uploads, &leases, &surroundings).into_iter().map(|upload| upload.upload_id).collect();
        assert_eq!(stale, ["dead"]);
        let entry =
            |size_bytes, modified: &str| Found { size_bytes, ..found("restores/waiting/production/r.json", modified) };
        let entries =
            vec![entry(0, "2025-06-21T00:00:00Z"), entry(9, "2025-06-21T00:00:00Z"), entry(0, "2025-06-22T12:00:00Z")];
        assert_eq!(finished_entries(entries.clone(), &surroundings), entries[..1]);
        let dead = dead_leases(leases, &surroundings);
        assert_eq!((dead.len(), dead[0].upload_id.as_deref()), (1, Some("dead")));
    }
}
