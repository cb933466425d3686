//! One function an action, and what each refuses. Source: Amazon RDS API Reference.

use std::collections::BTreeMap;

use super::model::{Call, Snapshot, State, TASK_QUOTA, Task};
use super::query;
use super::restore;
use super::xml::Xml;

pub(super) type Fields = BTreeMap<String, String>;

/// ExportOnly's limit in bytes (Amazon RDS User Guide, "Considerations for DB snapshot exports").
const EXPORT_ONLY_BYTES: usize = 200 << 10;

#[derive(Debug)]
pub(super) struct Refusal {
    pub status: u16,
    pub code: String,
    pub message: String,
}

pub(super) fn refused(status: u16, code: &str, message: impl Into<String>) -> Refusal {
    Refusal { status, code: code.to_owned(), message: message.into() }
}

pub(super) fn answer(state: &mut State, action: &str, fields: &Fields) -> Result<String, Refusal> {
    if let Some(lacking) =
        state.allowed.as_ref().and_then(|allowed| needed(action, fields).find(|r| !allowed.contains(r)))
    {
        return Err(refused(403, "AccessDenied", format!("The caller is not authorized to perform: {lacking}")));
    }
    if let Some(planned) = state.planned.iter_mut().find(|planned| planned.action == action && planned.times > 0) {
        planned.times -= 1;
        return Err(refused(planned.status, &planned.code, planned.message.clone()));
    }
    match action {
        "DescribeDBSnapshots" => describe_snapshots(state, fields, false),
        "DescribeDBClusterSnapshots" => describe_snapshots(state, fields, true),
        "CreateDBSnapshot" => create_snapshot(state, fields, false),
        "CreateDBClusterSnapshot" => create_snapshot(state, fields, true),
        "DeleteDBSnapshot" => delete_snapshot(state, fields, false),
        "DeleteDBClusterSnapshot" => delete_snapshot(state, fields, true),
        "StartExportTask" => start_export(state, fields),
        "DescribeExportTasks" => describe_exports(state, fields),
        _ => restore::answer(state, action, fields).unwrap_or_else(|| {
            Err(refused(400, "InvalidAction", format!("the scripted server does not know {action:?}")))
        }),
    }
}

/// The rights that a request takes.
/// Source: Service Authorization Reference, "Actions, resources, and condition keys for Amazon RDS"; Amazon RDS User Guide,
/// "Setting up access to an Amazon S3 bucket" and "Setting up cross-account access".
fn needed(action: &str, fields: &Fields) -> impl Iterator<Item = String> {
    let tags = !query::tags(fields).is_empty();
    let also: &[&str] = match action {
        "StartExportTask" => &["iam:PassRole", "kms:CreateGrant", "kms:DescribeKey"],
        _ if tags => &["rds:AddTagsToResource"],
        _ => &[],
    };
    std::iter::once(format!("rds:{action}")).chain(also.iter().map(ToString::to_string))
}

pub(super) fn required<'a>(fields: &'a Fields, name: &str) -> Result<&'a str, Refusal> {
    let found = fields.get(name).map(String::as_str).filter(|text| !text.is_empty());
    found.ok_or_else(|| refused(400, "MissingParameter", format!("The request must contain the parameter {name}")))
}

/// A page of what was found, and the marker of the next.
pub(super) fn page<'a, T>(found: &'a [T], fields: &Fields, page_size: Option<usize>) -> (&'a [T], Option<String>) {
    let from = fields.get("Marker").and_then(|marker| marker.parse().ok()).unwrap_or(0).min(found.len());
    let asked = fields.get("MaxRecords").and_then(|size| size.parse().ok()).unwrap_or(100);
    let end = (from + page_size.map_or(asked, |size| size.min(asked))).min(found.len());
    (&found[from..end], (end < found.len()).then(|| end.to_string()))
}

fn snapshot_names(is_cluster: bool) -> (&'static str, &'static str, &'static str) {
    match is_cluster {
        false => ("DBSnapshot", "DBSnapshotIdentifier", "DBInstanceIdentifier"),
        true => ("DBClusterSnapshot", "DBClusterSnapshotIdentifier", "DBClusterIdentifier"),
    }
}

pub(super) fn no_snapshot(is_cluster: bool, id: &str) -> Refusal {
    let code = if is_cluster { "DBClusterSnapshotNotFoundFault" } else { "DBSnapshotNotFound" };
    refused(404, code, format!("{} {id} not found.", snapshot_names(is_cluster).0))
}

fn describe_snapshots(state: &mut State, fields: &Fields, is_cluster: bool) -> Result<String, Refusal> {
    let (element, id, server) = snapshot_names(is_cluster);
    let (id, server) = (fields.get(id), fields.get(server));
    let wanted = fields.get("SnapshotType");
    let mut found = Vec::new();
    for snapshot in state.snapshots.iter_mut().filter(|snapshot| snapshot.is_cluster == is_cluster) {
        let fits = id.is_none_or(|id| snapshot.id.eq_ignore_ascii_case(id))
            && server.is_none_or(|server| snapshot.server.eq_ignore_ascii_case(server))
            && wanted.is_none_or(|wanted| snapshot.snapshot_type() == wanted);
        if fits {
            found.push(snapshot.clone());
            snapshot.creating = snapshot.creating.saturating_sub(1);
        }
    }
    if let Some(id) = id.filter(|_| found.is_empty()) {
        return Err(no_snapshot(is_cluster, id));
    }
    let (shown, marker) = page(&found, fields, state.page_size);
    let mut xml = Xml::default();
    xml.inside(&format!("{element}s"), |xml| {
        for snapshot in shown {
            xml.inside(element, |xml| describe(xml, snapshot));
        }
    });
    xml.optional("Marker", marker);
    Ok(xml.finish())
}

fn describe(xml: &mut Xml, snapshot: &Snapshot) {
    let (element, id, server) = snapshot_names(snapshot.is_cluster);
    let is_there = snapshot.creating == 0;
    xml.text(id, &snapshot.id)
        .text(server, &snapshot.server)
        .text(&format!("{element}Arn"), snapshot.arn())
        .optional("SnapshotCreateTime", is_there.then_some(&snapshot.created))
        .text("Engine", &snapshot.engine)
        .text("EngineVersion", &snapshot.engine_version)
        .text("Status", snapshot.status())
        .text("SnapshotType", snapshot.snapshot_type())
        .number("PercentProgress", if is_there { 100 } else { 0 })
        .number("AllocatedStorage", 20)
        .text(if snapshot.is_cluster { "StorageEncrypted" } else { "Encrypted" }, snapshot.encrypted.to_string())
        .optional("KmsKeyId", snapshot.kms_key_id.as_ref().filter(|_| snapshot.encrypted))
        .optional("EngineMode", snapshot.is_cluster.then_some(&snapshot.engine_mode))
        .tags(&snapshot.tags);
}

fn create_snapshot(state: &mut State, fields: &Fields, is_cluster: bool) -> Result<String, Refusal> {
    let (element, id, server) = snapshot_names(is_cluster);
    let (id, server) = (required(fields, id)?.to_ascii_lowercase(), required(fields, server)?);
    let source = state.servers.iter().find(|s| s.is_cluster == is_cluster && s.id.eq_ignore_ascii_case(server));
    let Some(source) = source else {
        let code = if is_cluster { "DBClusterNotFoundFault" } else { "DBInstanceNotFound" };
        return Err(refused(404, code, format!("{server} not found.")));
    };
    if source.status() != "available" {
        let code = if is_cluster { "InvalidDBClusterStateFault" } else { "InvalidDBInstanceState" };
        return Err(refused(400, code, format!("{server} is not available.")));
    }
    if state.snapshots.iter().any(|snapshot| snapshot.is_cluster == is_cluster && snapshot.id == id) {
        let code = if is_cluster { "DBClusterSnapshotAlreadyExistsFault" } else { "DBSnapshotAlreadyExists" };
        return Err(refused(400, code, format!("Cannot create the snapshot because {id} already exists.")));
    }
    let mut snapshot = Snapshot::manual(&id, &source.id, &jiff::Timestamp::now().to_string());
    snapshot.is_cluster = is_cluster;
    snapshot.engine = source.engine.clone();
    snapshot.engine_version = source.engine_version.clone();
    snapshot.tags = query::tags(fields);
    snapshot.creating = state.creating;
    let mut xml = Xml::default();
    xml.inside(element, |xml| describe(xml, &snapshot));
    state.snapshots.push(snapshot);
    Ok(xml.finish())
}

fn delete_snapshot(state: &mut State, fields: &Fields, is_cluster: bool) -> Result<String, Refusal> {
    let (element, id, _) = snapshot_names(is_cluster);
    let id = required(fields, id)?;
    let at = state.snapshots.iter().position(|snapshot| snapshot.is_cluster == is_cluster && snapshot.id == id);
    let at = at.ok_or_else(|| no_snapshot(is_cluster, id))?;
    if state.snapshots[at].automated || state.snapshots[at].status() != "available" {
        let code = if is_cluster { "InvalidDBClusterSnapshotStateFault" } else { "InvalidDBSnapshotState" };
        return Err(refused(400, code, format!("Cannot delete the snapshot {id}: it is automated or not available.")));
    }
    let snapshot = state.snapshots.remove(at);
    let mut xml = Xml::default();
    xml.inside(element, |xml| describe(xml, &snapshot));
    Ok(xml.finish())
}

fn start_export(state: &mut State, fields: &Fields) -> Result<String, Refusal> {
    let [id, source, bucket, role, key] =
        ["ExportTaskIdentifier", "SourceArn", "S3BucketName", "IamRoleArn", "KmsKeyId"]
            .map(|name| required(fields, name));
    let (id, source, bucket, role, key) = (id?, source?, bucket?, role?, key?);
    let prefix = fields.get("S3Prefix").cloned().unwrap_or_default();
    let only = query::list(fields, "ExportOnly", "member");
    if state.tasks.iter().any(|task| task.id == id) {
        return Err(refused(
            400,
            "ExportTaskAlreadyExists",
            format!("The export task with the ID {id} already exists."),
        ));
    }
    let Some(snapshot) = state.snapshots.iter().find(|snapshot| snapshot.arn() == source) else {
        return Err(no_snapshot(source.contains(":cluster-snapshot:"), source));
    };
    if snapshot.status() != "available" || snapshot.engine_mode == "serverless" {
        let message = format!("The source {source} cannot be exported in its state or engine mode.");
        return Err(refused(400, "InvalidExportSourceState", message));
    }
    if state.missing_roles.contains(role) {
        let message = format!("The principal export.rds.amazonaws.com isn't allowed to assume the IAM role {role}.");
        return Err(refused(404, "IamRoleNotFound", message));
    }
    let storage_key = snapshot.kms_key_id.as_deref().unwrap_or_default();
    if let Some(disabled) = [key, storage_key].into_iter().find(|key| state.disabled_keys.contains(*key)) {
        return Err(refused(400, "KMSKeyNotAccessibleFault", format!("The KMS key {disabled} is not enabled.")));
    }
    if prefix.contains(':') || only.iter().map(String::len).sum::<usize>() > EXPORT_ONLY_BYTES {
        return Err(refused(400, "InvalidParameterValue", "S3Prefix holds a colon, or ExportOnly is too long."));
    }
    let under_way = || state.tasks.iter().filter(|task| task.is_under_way());
    if under_way().any(|task| task.source_arn == source) {
        return Err(refused(400, "ExportTaskAlreadyExists", format!("An export of {source} is already running.")));
    }
    if under_way().count() >= TASK_QUOTA {
        let message = format!("You can't have more than {TASK_QUOTA} export tasks in progress.");
        return Err(refused(400, "ExportTaskLimitReachedFault", message));
    }
    let course = state.courses.pop_front().unwrap_or_default();
    let [id, source_arn, bucket, role_arn, kms_key_id] = [id, source, bucket, role, key].map(str::to_owned);
    let task = Task { id, source_arn, bucket, prefix, role_arn, kms_key_id, only, course, looks: 0, written: false };
    let mut xml = Xml::default();
    describe_task(&mut xml, &task);
    state.tasks.push(task);
    Ok(xml.finish())
}

fn describe_exports(state: &mut State, fields: &Fields) -> Result<String, Refusal> {
    let id = fields.get("ExportTaskIdentifier");
    let mut found = Vec::new();
    for task in state.tasks.iter_mut().filter(|task| id.is_none_or(|id| task.id == *id)) {
        // A look at all of them is nobody's look at one.
        task.looks += usize::from(id.is_some());
        found.push(task.clone());
    }
    if let Some(id) = id.filter(|_| found.is_empty()) {
        return Err(refused(404, "ExportTaskNotFound", format!("The export task with the ID {id} does not exist.")));
    }
    let (shown, marker) = page(&found, fields, state.page_size);
    let mut xml = Xml::default();
    xml.inside("ExportTasks", |xml| {
        for task in shown {
            xml.inside("ExportTask", |xml| describe_task(xml, task));
        }
    });
    xml.optional("Marker", marker);
    Ok(xml.finish())
}

fn describe_task(xml: &mut Xml, task: &Task) {
    let step = task.step();
    xml.text("ExportTaskIdentifier", &task.id)
        .text("SourceArn", &task.source_arn)
        .inside("ExportOnly", |xml| {
            for only in &task.only {
                xml.text("member", only);
            }
        })
        .text("TaskStartTime", "2025-06-21T14:30:00Z")
        .text("S3Bucket", &task.bucket)
        .text("S3Prefix", &task.prefix)
        .text("IamRoleArn", &task.role_arn)
        .text("KmsKeyId", &task.kms_key_id)
        .text("Status", &step.status)
        .number("PercentProgress", step.percent)
        .number("TotalExtractedDataInGB", 0)
        .optional("FailureCause", step.failure_cause.as_ref())
        .optional("WarningMessage", step.warning.as_ref());
}

impl Call {
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }
}
