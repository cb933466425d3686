//! Mode `plan`: what a restore would do, everything that is against it, how big it is. Nothing is changed.

use holdfast_shared::domain::{BackupId, Manifest};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::thaw::{Archive, thaw_refusals};
use holdfast_shared::plan::clearance::{
    Facts, Passkey, Refusal, Restore, Source, export_in_vain, passed_over, refusals,
};
use holdfast_shared::store::read::{ArchiveError, ArchiveSource};
use holdfast_shared::store::thaw::{Readiness, Stored};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::audit::Problem;
use crate::guard::{Guard, Seen, refusal_fault, restore_of};
use crate::last_time::{self, LastTime};
use crate::request::RestoreRequest;
use crate::thaw::in_words;

/// Loading rows and building what depends on them, against reading them: measured on the benchmark's database.
const LOAD_FACTOR: f64 = 2.0;
/// Reading the restored rows once more, in parallel, for their fingerprints.
const PROOF_FACTOR: f64 = 0.5;

/// The answer, and what is against the restore.
pub struct Preview {
    pub answer: Value,
    pub problems: Vec<Problem>,
}

/// Looks at everything a restore would look at, but the passkey, and goes on where one thing cannot be seen.
pub async fn preview(guard: &Guard<'_>, request: &RestoreRequest, id: BackupId) -> Preview {
    let mut faults: Vec<Fault> = Vec::new();
    let target = if request.mode.writes_to_the_server() { kept(guard.target().await, &mut faults) } else { None };
    let live_database = target.as_ref().map(|target| target.database.clone()).unwrap_or_default();
    let found = kept(guard.source(request, &live_database).await, &mut faults);
    let stored = match found.as_ref().and_then(|found| Some((found, found.dump()?))) {
        Some((found, dump)) => kept(found.stored(&dump).await, &mut faults).flatten(),
        None => None,
    };
    // What is no archive is not found out by whoever restores it.
    if let (Some(found), Some(Stored { readiness: Readiness::Readable, .. })) = (&found, &stored)
        && let (Source::Import { size_bytes, version_id, .. }, Some(dump)) = (&found.source, found.dump())
    {
        let opened = ArchiveSource::open(&found.store, &dump.key, version_id.as_deref(), Some(*size_bytes)).await;
        kept(opened.map_err(ArchiveError::of_import), &mut faults);
    }
    let (source, warnings) = found.map_or((None, Vec::new()), |found| (Some(found.source), found.warnings));
    // Names can be told without the backup; what depends on it is then left out.
    let stand_in = source.clone().unwrap_or(Source::Previous);
    let named = restore_of(request, &stand_in, &live_database, None, id);
    let server = match &target {
        Some(target) => kept(guard.observe(target, named.target()).await, &mut faults),
        None => None,
    };
    let restore = restore_of(request, &stand_in, &live_database, server.as_ref(), id);
    let safety = kept(guard.safety_backup(&restore).await, &mut faults).flatten();
    let passkey = match (&guard.config.passkey_secret_arn, kept(guard.locked_until().await, &mut faults).flatten()) {
        (None, _) => Passkey::NotConfigured,
        (Some(_), Some(until)) => Passkey::LockedOut { until },
        (Some(_), None) => Passkey::Missing,
    };
    let seen = Seen { restore, source: stand_in, passkey, server, live_database };
    let facts = guard.facts(request, &seen, safety);
    let archived = stored.as_ref().and_then(Stored::archive);
    let mut refusals = match archived {
        Some(archive) => thaw_refusals(&facts, archive, request.take_safety_backup),
        None => refusals(&facts),
    };
    refusals.retain(|refusal| match refusal {
        // A plan needs none, and says that the restore does.
        Refusal::PasskeyMissing => false,
        Refusal::SourceUnfit { .. } => source.is_some(),
        // Told as the fault that came of looking.
        Refusal::TargetUnknown => false,
        // Would be taken.
        refusal => !(request.take_safety_backup && refusal.is_cured_by_export()),
    });
    faults.extend(refusals.iter().map(refusal_fault));
    let last = match source.as_ref().and_then(Source::manifest) {
        Some(manifest) => {
            kept(last_time::of(guard.store, &guard.config.environment, manifest).await, &mut faults).flatten()
        }
        None => None,
    };
    let problems: Vec<Problem> = faults.iter().map(Problem::from).collect();
    let mut answer = answer(request, &facts, source.as_ref(), &problems, warnings);
    if let Some(manifest) = source.as_ref().and_then(Source::manifest) {
        answer["last_time"] = json!(last);
        answer["estimate"] = estimate(manifest, last.as_ref());
    }
    if let (Some(stored), Some(archive)) = (&stored, archived) {
        answer["archived"] = thaw(request, stored, archive);
        if let Some(steps) = answer["steps"].as_array_mut() {
            steps.insert(0, json!(format!("have S3 thaw the dump, which lies in {}, and wait", stored.storage_class)));
        }
    }
    if let Some(Source::Rds(rds)) = &source {
        let server = rds.server.as_ref();
        answer["rds"] = json!({
            "source": rds.configured.as_ref().map(ToString::to_string),
            "snapshot": rds.snapshot.as_ref().map(|found| json!({"id": found.id(), "created": found.created, "status": found.status})),
            "restorable": {"from": server.and_then(|s| s.earliest_restorable), "to": server.and_then(|s| s.latest_restorable)},
            "new": rds.wanted(),
        });
    }
    Preview { answer, problems }
}

/// The value, or `None` and the fault among the others.
fn kept<T>(result: Result<T, Fault>, faults: &mut Vec<Fault>) -> Option<T> {
    result.map_err(|fault| faults.push(fault)).ok()
}

fn answer(
    request: &RestoreRequest,
    facts: &Facts,
    source: Option<&Source>,
    problems: &[Problem],
    mut warnings: Vec<String>,
) -> Value {
    let manifest = source.and_then(Source::manifest);
    warnings.extend(manifest.map(|manifest| notices(manifest, facts)).unwrap_or_default());
    warnings.extend(facts.target.as_ref().and_then(|server| passed_over(&facts.restore, server)));
    json!({
        "status": "planned",
        "mode": "plan",
        "plan_for": request.mode.as_str(),
        "allowed": problems.is_empty(),
        "refusals": problems,
        "passkey": if facts.restore.needs_passkey() { "required" } else { "not required" },
        "steps": steps(request, facts, source),
        "restore": facts.restore,
        "options": facts.options,
        "backup": manifest.map(|manifest| described(manifest, facts.now)),
        "import": match source {
            Some(Source::Import { name, size_bytes, .. }) => json!({"name": name.to_string(), "size_bytes": size_bytes}),
            _ => Value::Null,
        },
        "target": facts.target.as_ref().map(|server| json!({
            "environment": facts.environment,
            "version": server.version,
            "system_identifier": server.system_identifier,
        })),
        "safety_backup": facts.restore.changes_existing_data().then(|| json!({
            "found": facts.safety_backup.as_ref().map(|backup| json!({"id": backup.id, "completed": backup.completed})),
            "would_be_taken": may_take_backup(request, facts),
        })),
        "last_time": null,
        "estimate": null,
        "warnings": warnings,
    })
}

/// Whether a safety backup is taken where the newest backup is not recent enough.
fn may_take_backup(request: &RestoreRequest, facts: &Facts) -> bool {
    request.take_safety_backup && export_in_vain(facts).is_none()
}

/// What it takes until the dump can be read.
fn thaw(request: &RestoreRequest, stored: &Stored, archive: Archive) -> Value {
    let tier = request.options.tier;
    let within = archive.thaws_within(tier).map(|(least, most)| json!({"from": in_words(least), "to": in_words(most)}));
    let under_way = matches!(stored.readiness, Readiness::Thawing(_));
    json!({"storage_class": stored.storage_class, "tier": tier, "thaws_within": within, "being_thawed": under_way})
}

fn described(manifest: &Manifest, now: Timestamp) -> Value {
    let dump = manifest.artifacts.get("dump");
    json!({
        "id": manifest.timestamp,
        "environment": manifest.environment,
        "database": manifest.source.database,
        "purpose": manifest.purpose,
        "state": manifest.state,
        "verified": manifest.verified,
        "age_minutes": manifest.timestamp.timestamp().duration_until(now).as_mins(),
        "tables": manifest.tables.len(),
        "rows": manifest.rows(),
        "bytes": manifest.bytes(),
        "stored_bytes": dump.map(|dump| dump.size_bytes),
        "compression": dump.map(|dump| dump.compression.clone()),
        "server_version": manifest.server.version,
        "pg_restore_major": dump.map(|dump| dump.pg_restore_major),
        "encoding": manifest.server.encoding,
    })
}

/// What does not refuse the restore and is worth knowing before it.
fn notices(manifest: &Manifest, facts: &Facts) -> Vec<String> {
    let mut notices = Vec::new();
    if let Some(server) = &facts.target
        && server.major < manifest.server.major
    {
        notices.push(format!(
            "the backup is of PostgreSQL {}, the target is {}: definitions may use what the target does not know",
            manifest.server.version, server.version
        ));
    }
    if manifest.environment != facts.environment {
        notices.push(format!("the backup is {}'s, the target is {}'s", manifest.environment, facts.environment));
    }
    let selection = &manifest.selection;
    if !(selection.include.is_empty() && selection.exclude.is_empty() && selection.exclude_data.is_empty()) {
        notices.push("the backup leaves tables or rows out: see selection in its manifest".to_owned());
    }
    notices
}

/// How long loading and proving may take, and what says so.
fn estimate(manifest: &Manifest, last: Option<&LastTime>) -> Value {
    let export_seconds = manifest.durations_seconds.total;
    if let Some(last) = last {
        return json!({
            "seconds": last.scaled_to(manifest.bytes()).ceil(),
            "basis": format!(
                "mode {} of {} took {:.1} s for {} bytes of row text at {}, and this backup has {}",
                last.mode, last.backup_id, last.seconds.total, last.bytes, last.at, manifest.bytes()
            ),
            "export_seconds": export_seconds,
        });
    }
    let data = manifest.durations_seconds.data;
    json!({
        "seconds": (data * (LOAD_FACTOR + PROOF_FACTOR)).ceil(),
        "basis": format!("nothing of this database was restored here before; the export read the rows in {data:.1} s; loading is taken as {LOAD_FACTOR} times that, the proof as {PROOF_FACTOR} times"),
        "export_seconds": export_seconds,
    })
}

fn steps(request: &RestoreRequest, facts: &Facts, source: Option<&Source>) -> Vec<String> {
    let what = match source {
        Some(Source::Backup(manifest)) => format!("backup {}", manifest.timestamp),
        Some(Source::Import { name, .. }) => format!("imports/{name}"),
        _ => "the backup".to_owned(),
    };
    let proof = match source {
        Some(Source::Import { .. }) => "compare row counts with what was loaded",
        _ => "compare row counts and fingerprints with the manifest",
    };
    let mut steps = Vec::new();
    if facts.restore.changes_existing_data() && may_take_backup(request, facts) {
        steps.push(format!("back up {} first, unless its newest backup is recent enough", facts.restore.target()));
    }
    match &facts.restore {
        Restore::NewDatabase { database } => {
            steps.extend([format!("create database {database}"), format!("load {what} into it"), proof.to_owned()]);
        }
        Restore::Swap { database, shadow, previous } => steps.extend([
            format!("create database {shadow}"),
            format!("load {what} into it"),
            proof.to_owned(),
            format!("end the sessions on {database}, rename it to {previous} and {shadow} to {database}"),
            match facts.options.keep_previous_days {
                None if !facts.accepts_left_out.is_empty() => format!(
                    "keep {previous} until it is dropped by hand: nothing else has {}; mode undo takes it back",
                    patterns(&facts.accepts_left_out)
                ),
                Some(days) => format!("keep {previous} for {days} days; mode undo takes it back"),
                None => format!("keep {previous} until it is dropped by hand; mode undo takes it back"),
            },
        ]),
        Restore::TablesIntoSchema { database, schema, tables } => steps.extend([
            format!("create schema {schema} in {database}"),
            format!("load {} of {what} into it", patterns(tables)),
            proof.to_owned(),
        ]),
        Restore::TablesInPlace { database, tables } => steps.extend([
            format!("in one transaction in {database}: empty {}, load their rows of {what}", patterns(tables)),
            "check foreign keys in both directions".to_owned(),
            format!("{proof}, then commit"),
        ]),
        Restore::Undo { database, previous, put_aside, aside } => {
            let previous = previous.as_deref().unwrap_or("the database that a swap has put aside");
            let since = put_aside.map_or_else(String::new, |at| format!(" (put aside at {at})"));
            steps.push(format!(
                "end the sessions on {database}, rename it to {aside} and {previous}{since} to {database}"
            ));
        }
        Restore::Verify { scratch } => steps.extend([
            format!("create database {scratch}"),
            format!("load {what} into it"),
            proof.to_owned(),
            format!("drop {scratch}, and write the result into the manifest"),
        ]),
        Restore::RdsSnapshot { snapshot, instance } => {
            let snapshot = snapshot.as_deref().unwrap_or("the newest snapshot");
            steps.push(format!(
                "create RDS instance {instance} from {snapshot}, with the source's network and parameters"
            ));
        }
        Restore::RdsPointInTime { moment, instance } => {
            let moment = moment.map_or_else(|| "the latest moment there is".to_owned(), |moment| moment.to_string());
            steps.push(format!(
                "create RDS instance {instance} as of {moment}, with the source's network and parameters"
            ));
        }
    }
    steps
}

fn patterns(tables: &[holdfast_shared::domain::TablePattern]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
