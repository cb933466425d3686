//! Which manual RDS snapshots go: those that Holdfast has taken, under the rules for `rds-export`. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::domain::rds::{ServerId, Snapshot, SnapshotType};
use crate::domain::{ArtifactKind, BackupId, Environment};
use crate::plan::retention::catalog::Catalog;
use crate::plan::retention::policy::Policy;

pub const TAG_ENVIRONMENT: &str = "holdfast:environment";
pub const TAG_BACKUP: &str = "holdfast:backup-id";
pub const TAG_PURPOSE: &str = "holdfast:purpose";
/// Put on by hand: the snapshot stays.
pub const TAG_HOLD: &str = "holdfast:hold";

/// What a decision needs besides the snapshots.
#[derive(Debug, Clone, Copy)]
pub struct Customs<'a> {
    pub environment: &'a Environment,
    pub sources: &'a [ServerId],
    pub name_prefix: &'a str,
    /// Backups that are pinned, and by whom.
    pub pinned: &'a BTreeMap<BackupId, String>,
    /// Backups whose manifest says so, or cannot be asked: what keeps their snapshots.
    pub held: &'a BTreeMap<BackupId, &'static str>,
    /// Runs that have not ended.
    pub working: &'a BTreeSet<BackupId>,
    /// The snapshots that they export: any of ours may be exported again.
    pub exported: &'a BTreeSet<String>,
    /// Why nothing of the environment expires.
    pub blocked: Option<&'a str>,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    pub id: BackupId,
    pub snapshot: Snapshot,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotPlan {
    pub delete: Vec<Decided>,
    pub keep: Vec<Decided>,
    /// Not of our taking: never looked at again.
    pub others: usize,
}

/// The backup for which a snapshot was taken; `None` for one that is not of our taking. Name, server and tags have to
/// agree: each alone may be somebody else's.
pub fn taken_for(snapshot: &Snapshot, customs: &Customs<'_>) -> Option<BackupId> {
    let id: BackupId = snapshot.id().strip_prefix(customs.name_prefix)?.parse().ok()?;
    let tag = |name: &str| snapshot.tags.get(name).map(String::as_str);
    let ours = snapshot.snapshot_type == SnapshotType::Manual
        && customs.sources.contains(&snapshot.server)
        && tag(TAG_ENVIRONMENT) == Some(customs.environment.as_str())
        && tag(TAG_BACKUP) == Some(id.to_string().as_str());
    ours.then_some(id)
}

/// What manifests say of hold. One that is not understood may say it, and a deleted snapshot does not come back.
pub fn held(manifests: &BTreeSet<BackupId>, catalog: &Catalog) -> BTreeMap<BackupId, &'static str> {
    let mut held: BTreeMap<BackupId, &'static str> =
        manifests.iter().map(|id| (*id, "its manifest is not understood")).collect();
    for record in catalog.records() {
        if record.hold {
            held.insert(record.id, "hold");
        } else if record.problem.is_none() {
            held.remove(&record.id);
        }
    }
    held
}

/// Decides about every snapshot.
pub fn plan_snapshots(snapshots: &[Snapshot], policy: &Policy, customs: &Customs<'_>) -> SnapshotPlan {
    let mut plan = SnapshotPlan::default();
    let mut by_server: BTreeMap<&ServerId, Vec<(BackupId, &Snapshot)>> = BTreeMap::new();
    for snapshot in snapshots {
        match taken_for(snapshot, customs) {
            Some(id) => by_server.entry(&snapshot.server).or_default().push((id, snapshot)),
            None => plan.others += 1,
        }
    }
    for (server, mut taken) in by_server {
        taken.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(*id));
        decide(server, &taken, policy, customs, &mut plan);
    }
    plan.delete.sort_by_key(|decided| decided.id);
    plan.keep.sort_by_key(|decided| decided.id);
    plan
}

fn decide(
    server: &ServerId,
    taken: &[(BackupId, &Snapshot)],
    policy: &Policy,
    customs: &Customs<'_>,
    plan: &mut SnapshotPlan,
) {
    let newest = taken.iter().find(|(id, snapshot)| id.timestamp() <= customs.now && snapshot.is_available());
    let newest = newest.map(|(id, _)| *id);
    let clock_behind = taken.iter().any(|(id, _)| id.timestamp() > customs.now);
    let mut governed: BTreeMap<usize, Vec<(BackupId, &Snapshot)>> = BTreeMap::new();
    for &(id, snapshot) in taken {
        let purpose = snapshot.tags.get(TAG_PURPOSE).map_or("", String::as_str);
        match policy.rule_for(customs.environment, &server.id, purpose, ArtifactKind::RdsExport) {
            Some((rule, _)) if id.timestamp() <= customs.now => governed.entry(rule).or_default().push((id, snapshot)),
            Some(_) => plan.keep.push(decided(id, snapshot, "dated in the future".to_owned())),
            None => plan.keep.push(decided(id, snapshot, "no rule fits".to_owned())),
        }
    }
    for (rule, members) in governed {
        let backups: Vec<(Timestamp, bool)> =
            members.iter().map(|(id, snapshot)| (id.timestamp(), snapshot.is_available())).collect();
        for ((id, snapshot), kept_for) in
            members.into_iter().zip(policy.rules[rule].keep.reasons(&backups, customs.now))
        {
            let stays = if let Some(blocked) = customs.blocked {
                Some(format!("blocked: {blocked}"))
            } else if clock_behind {
                Some("blocked: the clock is behind the newest snapshot".to_owned())
            } else if newest == Some(id) || newest.is_none() {
                Some("newest".to_owned())
            } else if snapshot.tags.get(TAG_HOLD).is_some_and(|hold| hold == "true") {
                Some("hold".to_owned())
            } else if let Some(why) = customs.held.get(&id) {
                Some((*why).to_owned())
            } else if let Some(by) = customs.pinned.get(&id) {
                Some(format!("pinned by {by}"))
            } else if customs.working.contains(&id) || customs.exported.contains(snapshot.id()) {
                Some("its export is under way".to_owned())
            } else if !snapshot.is_available() {
                Some(format!("it is {}", snapshot.status))
            } else {
                kept_for.first().map(ToString::to_string)
            };
            match stays {
                Some(reason) => plan.keep.push(decided(id, snapshot, reason)),
                None => plan.delete.push(decided(id, snapshot, format!("rule {} keeps it no longer", rule + 1))),
            }
        }
    }
}

fn decided(id: BackupId, snapshot: &Snapshot, reason: String) -> Decided {
    Decided { id, snapshot: snapshot.clone(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: &str, edit: impl FnOnce(&mut Snapshot)) -> Snapshot {
        let name = format!("manual-export-{id}");
        let mut snapshot = Snapshot {
            tags: [(TAG_ENVIRONMENT, "production"), (TAG_BACKUP, id), (TAG_PURPOSE, "rds_export")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Snapshot::of_shop(&name, SnapshotType::Manual)
        };
        edit(&mut snapshot);
        snapshot
    }

    fn day(day: u8) -> String {
        format!("202506{day:02}-020000")
    }

    #[derive(Default)]
    struct Given {
        pinned: BTreeMap<BackupId, String>,
        held: BTreeMap<BackupId, &'static str>,
        working: BTreeSet<BackupId>,
        exported: BTreeSet<String>,
        blocked: Option<&'static str>,
        now: Option<&'static str>,
    }

    impl Given {
        fn plan(&self, snapshots: &[Snapshot]) -> SnapshotPlan {
            let policy: Policy = r#"{"rules":[{"artifacts":["rds-export"],"keep_last":2}]}"#.parse().unwrap();
            let (environment, sources) = ("production".parse().unwrap(), ["shop".parse().unwrap()]);
            let customs = Customs {
                environment: &environment,
                sources: &sources,
                name_prefix: "manual-export-",
                pinned: &self.pinned,
                held: &self.held,
                working: &self.working,
                exported: &self.exported,
                blocked: self.blocked,
                now: self.now.unwrap_or("2025-06-30T00:00:00Z").parse().unwrap(),
            };
            plan_snapshots(snapshots, &policy, &customs)
        }

        fn deleted(&self, snapshots: &[Snapshot]) -> Vec<String> {
            self.plan(snapshots).delete.iter().map(|decided| decided.id.to_string()).collect()
        }
    }

    fn five() -> Vec<Snapshot> {
        (1..=5).map(|n| snapshot(&day(n), |_| {})).collect()
    }

    #[test]
    fn the_policy_decides_about_ours() {
        assert_eq!(Given::default().deleted(&five()), [day(1), day(2), day(3)]);
        assert_eq!(Given::default().plan(&five()).keep[0].reason, "last 2");
        assert_eq!(Given::default().plan(&five()).keep[1].reason, "newest");
    }

    #[test]
    fn what_is_not_of_our_taking_is_left_alone() {
        let mut foreign = vec![
            snapshot(&day(1), |s| s.snapshot_type = SnapshotType::Automated),
            snapshot(&day(1), |s| s.snapshot_type = SnapshotType::Other),
            snapshot(&day(1), |s| s.server = "other".parse().unwrap()),
            snapshot(&day(1), |s| s.server = "cluster:shop".parse().unwrap()),
            snapshot(&day(1), |s| s.tags.clear()),
            snapshot(&day(1), |s| drop(s.tags.insert(TAG_ENVIRONMENT.into(), "staging".into()))),
            snapshot(&day(1), |s| drop(s.tags.insert(TAG_BACKUP.into(), day(2)))),
            snapshot(&day(1), |s| {
                s.arn = "arn:aws:rds:eu-west-1:123456789012:snapshot:before-migration".parse().unwrap();
            }),
            snapshot(&day(1), |s| {
                s.arn = format!("arn:aws:rds:eu-west-1:123456789012:snapshot:other-export-{}", day(1)).parse().unwrap();
            }),
        ];
        let count = foreign.len();
        foreign.extend(five());
        let plan = Given::default().plan(&foreign);
        assert_eq!((plan.others, plan.delete.len(), plan.keep.len()), (count, 3, 2));
    }

    #[test]
    fn each_thing_that_stands_above_the_policy_keeps() {
        let id = |n: u8| -> BackupId { day(n).parse().unwrap() };
        let mut snapshots = five();
        snapshots[0].tags.insert(TAG_HOLD.into(), "true".into());
        let given = Given {
            pinned: BTreeMap::from([(id(2), "r-1 (restore)".to_owned())]),
            working: BTreeSet::from([id(3)]),
            ..Given::default()
        };
        assert_eq!(given.deleted(&snapshots), Vec::<String>::new());
        let held = Given { held: BTreeMap::from([(id(2), "hold")]), ..Given::default() };
        assert_eq!(held.deleted(&five()), [day(1), day(3)]);
        assert_eq!(held.plan(&five()).keep[0].reason, "hold");
        let again = Given { exported: BTreeSet::from([format!("manual-export-{}", day(2))]), ..Given::default() };
        assert_eq!(again.deleted(&five()), [day(1), day(3)]);
        assert_eq!(again.plan(&five()).keep[0].reason, "its export is under way");
        let busy: Vec<Snapshot> = (1..=5)
            .map(|n| {
                snapshot(&day(n), |s| {
                    if n < 5 {
                        s.status = "copying".into();
                    }
                })
            })
            .collect();
        assert!(Given::default().deleted(&busy).is_empty());
        assert!(Given { blocked: Some("anomaly"), ..Given::default() }.deleted(&five()).is_empty());
        // A clock that runs behind deletes nothing, nor does a snapshot of the future push others out.
        assert!(Given { now: Some("2025-06-04T00:00:00Z"), ..Given::default() }.deleted(&five()).is_empty());
        // One that is being created is no reason to let an older one go.
        let creating =
            [snapshot(&day(1), |_| {}), snapshot(&day(2), |_| {}), snapshot(&day(3), |s| s.status = "creating".into())];
        assert!(Given::default().deleted(&creating).is_empty());
    }

    #[test]
    fn what_no_rule_fits_stays() {
        let policy: Policy = r#"{"rules":[{"artifacts":["dump"],"keep_last":1}]}"#.parse().unwrap();
        let (environment, sources) = ("production".parse().unwrap(), ["shop".parse().unwrap()]);
        let customs = Customs {
            environment: &environment,
            sources: &sources,
            name_prefix: "manual-export-",
            pinned: &BTreeMap::new(),
            held: &BTreeMap::new(),
            working: &BTreeSet::new(),
            exported: &BTreeSet::new(),
            blocked: None,
            now: "2025-06-30T00:00:00Z".parse().unwrap(),
        };
        assert!(plan_snapshots(&five(), &policy, &customs).delete.is_empty());
    }
}
