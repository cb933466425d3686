//! Which backups expire: a pure function of manifests, pins, policy and time, with reasons for all it decides.
//!
//! Guards stand above the policy. The newest verified backup of each database of each environment stays; without one,
//! nothing of that database expires; nor after an anomaly that nobody has acknowledged, nor while the clock is
//! behind the newest backup. What cannot be understood is kept.

pub mod catalog;
pub mod databases;
pub mod policy;
mod reasons;
pub mod record;
pub mod snapshots;
pub mod sweep;
#[cfg(test)]
mod tests;
mod warnings;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::domain::manifest::State;
use crate::domain::{ArtifactKind, BackupId, Environment, Pin};
use crate::plan::retention::catalog::{Anomaly, Catalog};
use crate::plan::retention::policy::Policy;
use crate::plan::retention::record::{Artifact, Record};

pub use reasons::{Block, BlockKind, Kept, Reason, Refusal};

/// What a run is asked to look at, and what it has been told.
#[derive(Debug, Clone)]
pub struct Circumstances<'a> {
    /// Others' backups are not touched. Empty: all environments.
    pub environments: &'a [Environment],
    pub pins: &'a [Pin],
    /// By environment and database: anomalies up to this backup have been looked at.
    pub acknowledged: &'a BTreeMap<(Environment, String), BackupId>,
    pub override_anomaly: bool,
    pub now: Timestamp,
}

/// What is to be done, and why; oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub expire: Vec<Expiry>,
    /// What an earlier run has expired without coming to its end.
    pub resume: Vec<Expiry>,
    pub keep: Vec<Kept>,
    pub blocks: Vec<Block>,
    pub anomalies: Vec<Anomaly>,
    pub warnings: Vec<String>,
    pub tombstones: usize,
    /// Backups of environments that this run does not look at.
    pub others: usize,
}

/// A cleared deletion: only the plans of this module hand one out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Expiry {
    pub id: BackupId,
    pub environment: Environment,
    pub database: String,
    pub purpose: String,
    /// The manifest that was decided on.
    pub etag: String,
    pub artifacts: Vec<Artifact>,
    /// Nothing of the backup stays but its manifest.
    pub whole: bool,
    pub reason: String,
    /// Deleted by hand although a guard stood against it.
    pub forced: bool,
}

/// The live backups of one database of one environment, newest first.
struct Group<'a> {
    environment: &'a Environment,
    database: &'a str,
    records: Vec<&'a Record>,
    /// The newest verified ones: of all that can be restored, and of those that no doubt is cast on.
    protected: BTreeSet<BackupId>,
    /// It has backups that could be restored.
    restorable: bool,
}

/// Decides about every backup.
pub fn plan(catalog: &Catalog, policy: &Policy, circumstances: &Circumstances<'_>) -> Plan {
    let pins = active_pins(circumstances);
    let mut plan = Plan::default();
    let newest = in_scope(catalog, circumstances).filter(|record| record.state == State::Complete).map(|r| r.id).max();
    let clock_behind = newest.filter(|id| id.timestamp() > circumstances.now);

    let groups = groups(catalog, circumstances);
    let mut blocked: BTreeMap<(&Environment, &str), BTreeSet<BlockKind>> = BTreeMap::new();
    for group in &groups {
        let blocks = blocks(group, catalog, circumstances, clock_behind);
        let kinds = blocks.iter().map(|block| block.kind).collect();
        blocked.insert((group.environment, group.database), kinds);
        plan.blocks.extend(blocks);
        decide(group, policy, &pins, &blocked[&(group.environment, group.database)], circumstances.now, &mut plan);
    }
    for record in in_scope(catalog, circumstances).filter(|record| !record.is_live()) {
        if record.state == State::Expired {
            plan.tombstones += 1;
        } else {
            plan.keep.push(kept(record, vec![Reason::NothingListed]));
        }
    }
    for record in in_scope(catalog, circumstances).filter(|record| !record.unfinished.is_empty()) {
        let group = groups.iter().find(|g| g.environment == &record.environment && g.database == record.database);
        // A tombstone is a decision already taken, but data that is the last there is stays all the same.
        let safe = record.forced
            || group.is_some_and(|g| !g.protected.is_empty() || !g.restorable && !record.could_be_restored())
                && blocked.get(&(&record.environment, record.database.as_str())).is_some_and(BTreeSet::is_empty);
        let stays = match (pins.get(&record.id), &record.problem) {
            (Some(by), _) => Some(by.as_str()),
            (None, _) if record.hold => Some("hold"),
            (None, Some(problem)) => Some(problem.as_str()),
            (None, None) => (!safe).then_some("nothing of this database may be deleted"),
        };
        match stays {
            None => plan.resume.push(expiry(
                record,
                record.unfinished.clone(),
                !record.is_live(),
                "expired by an earlier run".to_owned(),
            )),
            Some(why) => {
                plan.warnings.push(format!("backup {} is expired, and its data stays for now: {why}", record.id));
            }
        }
    }
    let looked_at = |environment: &Environment| {
        circumstances.environments.is_empty() || circumstances.environments.contains(environment)
    };
    plan.others = catalog.records().iter().filter(|record| !looked_at(&record.environment)).count();
    plan.anomalies = catalog.anomalies().iter().filter(|anomaly| looked_at(&anomaly.environment)).cloned().collect();
    plan.warnings.extend(warnings::warnings(catalog, policy, circumstances));
    plan.expire.sort_unstable_by_key(|expiry| expiry.id);
    plan.resume.sort_unstable_by_key(|expiry| expiry.id);
    plan.keep.sort_unstable_by_key(|kept| kept.id);
    plan
}

/// Decides about one backup that somebody wants deleted. `None`: it is gone already.
///
/// `forced`: the request repeats the id, so that a last verified backup may go, too.
pub fn plan_deletion(
    catalog: &Catalog,
    circumstances: &Circumstances<'_>,
    id: BackupId,
    forced: bool,
) -> Result<Option<Expiry>, Refusal> {
    let record = catalog.records().iter().find(|record| record.id == id).ok_or(Refusal::Unknown(id))?;
    let (environment, database) = (record.environment.clone(), record.database.clone());
    if !in_scope(catalog, circumstances).any(|other| other.id == id) {
        return Err(Refusal::OtherEnvironment { id, environment });
    }
    if let Some(problem) = &record.problem {
        return Err(Refusal::NotUnderstood { id, problem: problem.clone() });
    }
    if let Some(by) = active_pins(circumstances).remove(&id) {
        return Err(Refusal::Pinned { id, by });
    }
    if record.hold {
        return Err(Refusal::Held { id });
    }
    let artifacts = [record.artifacts.clone(), record.unfinished.clone()].concat();
    if artifacts.is_empty() {
        return Ok(None);
    }
    let groups = groups(catalog, circumstances);
    let group = groups.iter().find(|g| g.environment == &environment && g.database == database);
    if !forced && group.is_some_and(|group| group.protected.contains(&id)) {
        return Err(Refusal::LastVerified { id, environment, database });
    }
    // What a tombstone still has may be the last there is, and it is in no group.
    let restorable = record.could_be_restored() || group.is_some_and(|group| group.restorable);
    if !forced && restorable && group.is_none_or(|group| group.protected.is_empty()) {
        return Err(Refusal::NoneVerified { environment, database });
    }
    if let Some(anomaly) = standing_anomaly(catalog, &environment, &database, circumstances) {
        return Err(Refusal::Anomaly { environment, database, findings: anomaly.findings.join(", ") });
    }
    let reason = "deleted by request".to_owned();
    Ok(Some(Expiry { forced, ..expiry(record, artifacts, true, reason) }))
}

fn in_scope<'a>(catalog: &'a Catalog, circumstances: &'a Circumstances<'_>) -> impl Iterator<Item = &'a Record> {
    let environments = circumstances.environments;
    catalog.records().iter().filter(move |r| environments.is_empty() || environments.contains(&r.environment))
}

/// Who pins what.
fn active_pins(circumstances: &Circumstances<'_>) -> BTreeMap<BackupId, String> {
    let active = circumstances.pins.iter().filter(|pin| pin.is_active(circumstances.now));
    active.map(|pin| (pin.backup_id, format!("{} ({})", pin.request_id, pin.purpose))).collect()
}

fn groups<'a>(catalog: &'a Catalog, circumstances: &'a Circumstances<'_>) -> Vec<Group<'a>> {
    let mut by_name: BTreeMap<(&Environment, &str), Vec<&Record>> = BTreeMap::new();
    for record in in_scope(catalog, circumstances).filter(|record| record.is_live()) {
        by_name.entry((&record.environment, &record.database)).or_default().push(record);
    }
    let groups = by_name.into_iter().map(|((environment, database), mut records)| {
        records.sort_unstable_by_key(|record| std::cmp::Reverse(record.id));
        let verified = |record: &&&Record| record.verified && record.is_restorable() && record.problem.is_none();
        let has_dump = |record: &&&Record| record.artifacts.iter().any(|a| a.kind == ArtifactKind::Dump);
        // One that is dated in the future stays as well, and does not stand in for the newest before now.
        let past = |record: &&&Record| record.id.timestamp() <= circumstances.now;
        // Nor does one whose data is gone from the bucket, or one of a few tables for one of all of them, or of all that
        // the deployment backs up: with tables left out by its settings no backup is whole.
        let there = |record: &&&Record| record.is_there();
        let stands_in = |record: &&&Record| there(record) && past(record);
        let protected = [
            records.iter().find(verified),
            records.iter().filter(verified).find(has_dump),
            records.iter().filter(verified).find(past),
            records.iter().filter(verified).find(there),
            records.iter().filter(verified).filter(stands_in).find(|record| record.whole),
            records.iter().filter(verified).filter(stands_in).find(|record| record.as_configured),
            records.iter().filter(verified).filter(stands_in).find(|record| !record.of_chosen_tables),
        ];
        Group {
            environment,
            database,
            protected: protected.into_iter().flatten().map(|record| record.id).collect(),
            restorable: records.iter().any(|record| record.is_restorable()),
            records,
        }
    });
    groups.collect()
}

/// The newest anomaly that nobody has acknowledged.
fn standing_anomaly<'a>(
    catalog: &'a Catalog,
    environment: &Environment,
    database: &str,
    circumstances: &Circumstances<'_>,
) -> Option<&'a Anomaly> {
    let acknowledged = circumstances.acknowledged.iter().find(|((e, d), _)| e == environment && d == database);
    let acknowledged = acknowledged.map(|(_, id)| *id);
    let standing = catalog.anomalies().iter().find(|anomaly| {
        &anomaly.environment == environment && anomaly.database == database && Some(anomaly.after) > acknowledged
    });
    standing.filter(|_| !circumstances.override_anomaly)
}

fn blocks(
    group: &Group<'_>,
    catalog: &Catalog,
    circumstances: &Circumstances<'_>,
    clock_behind: Option<BackupId>,
) -> Vec<Block> {
    let block = |kind, detail| Block {
        environment: group.environment.clone(),
        database: group.database.to_owned(),
        kind,
        detail,
    };
    let mut blocks = Vec::new();
    if group.restorable && group.protected.is_empty() {
        let detail = format!("none of {} backups is verified", group.records.len());
        blocks.push(block(BlockKind::NoVerifiedBackup, detail));
    }
    if let Some(newest) = clock_behind {
        let detail = format!("the newest backup is {newest}, and the clock says {:.0}", circumstances.now);
        blocks.push(block(BlockKind::ClockBehindNewest, detail));
    }
    if let Some(anomaly) = standing_anomaly(catalog, group.environment, group.database, circumstances) {
        let detail = format!("{} after {}: {}", anomaly.after, anomaly.before, anomaly.findings.join(", "));
        blocks.push(block(BlockKind::Anomaly, detail));
    }
    blocks
}

/// Decides about a group's backups, artifact by artifact.
fn decide(
    group: &Group<'_>,
    policy: &Policy,
    pins: &BTreeMap<BackupId, String>,
    blocked: &BTreeSet<BlockKind>,
    now: Timestamp,
    plan: &mut Plan,
) {
    let mut reasons: Vec<BTreeSet<Reason>> = Vec::with_capacity(group.records.len());
    // What each rule governs, kind by kind: the record's place and the artifact's place in it, newest first.
    let mut governed: BTreeMap<(usize, ArtifactKind), Vec<(usize, usize)>> = BTreeMap::new();
    let mut newest_kinds: BTreeSet<ArtifactKind> = BTreeSet::new();
    for (at, record) in group.records.iter().enumerate() {
        let future = record.id.timestamp() > now;
        let mut whole: BTreeSet<Reason> = blocked.iter().map(|kind| Reason::Blocked(*kind)).collect();
        if group.protected.contains(&record.id) {
            whole.insert(Reason::NewestVerified);
        }
        if record.hold {
            whole.insert(Reason::Held);
        }
        if let Some(by) = pins.get(&record.id) {
            whole.insert(Reason::Pinned(by.clone()));
        }
        if let Some(problem) = &record.problem {
            whole.insert(Reason::NotUnderstood(problem.clone()));
        }
        if future {
            whole.insert(Reason::DatedInTheFuture);
        }
        for (index, artifact) in record.artifacts.iter().enumerate() {
            if !group.restorable && !future && newest_kinds.insert(artifact.kind) {
                whole.insert(Reason::NewestOfItsKind(artifact.kind));
            }
            match policy.rule_for(group.environment, group.database, &record.purpose, artifact.kind) {
                Some((rule, _)) if !future => governed.entry((rule, artifact.kind)).or_default().push((at, index)),
                Some(_) => {}
                None => {
                    whole.insert(Reason::NoRule);
                }
            }
        }
        reasons.push(whole);
    }

    let mut expired: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
    for ((rule, _), members) in governed {
        let counted = |at: usize| {
            let record = group.records[at];
            // Not by what artifacts are left: that changes as they expire.
            (record.id.timestamp(), record.verified || !record.restorable)
        };
        let backups: Vec<(Timestamp, bool)> = members.iter().map(|&(at, _)| counted(at)).collect();
        for ((at, index), kept_for) in members.into_iter().zip(policy.rules[rule].keep.reasons(&backups, now)) {
            // What keeps the whole backup keeps each of its artifacts.
            let stays = reasons[at].iter().any(Reason::keeps_whole);
            if kept_for.is_empty() && !stays {
                expired.entry(at).or_default().push((index, rule));
            } else {
                reasons[at].extend(kept_for);
            }
        }
    }
    for (at, record) in group.records.iter().enumerate() {
        let expiring = expired.remove(&at).unwrap_or_default();
        if expiring.len() < record.artifacts.len() {
            plan.keep.push(kept(record, std::mem::take(&mut reasons[at]).into_iter().collect()));
        }
        if let Some(&(_, rule)) = expiring.first() {
            let whole = expiring.len() == record.artifacts.len();
            let artifacts = expiring.iter().map(|&(index, _)| record.artifacts[index].clone()).collect();
            plan.expire.push(expiry(record, artifacts, whole, format!("rule {} keeps it no longer", rule + 1)));
        }
    }
}

fn kept(record: &Record, reasons: Vec<Reason>) -> Kept {
    let (environment, database) = (record.environment.clone(), record.database.clone());
    Kept { id: record.id, environment, database, purpose: record.purpose.clone(), reasons }
}

fn expiry(record: &Record, artifacts: Vec<Artifact>, whole: bool, reason: String) -> Expiry {
    Expiry {
        id: record.id,
        environment: record.environment.clone(),
        database: record.database.clone(),
        purpose: record.purpose.clone(),
        etag: record.etag.clone(),
        artifacts,
        whole,
        reason,
        forced: record.forced,
    }
}
