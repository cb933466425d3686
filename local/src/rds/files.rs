//! What a finished export leaves in the bucket.
//!
//! Names: Amazon RDS User Guide, "File naming conventions for exports to Amazon S3". The two JSON documents are not described
//! there; their fields are those of exports that people have published.

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use serde_json::{Value, json};

use super::model::{State, Task};

/// The S3 server that RDS would write to.
#[derive(Debug, Clone)]
pub struct ExportTarget {
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
}

/// The tasks that have just been seen to be complete, and where their files go.
pub(super) fn finished(state: &mut State) -> Vec<(Task, ExportTarget)> {
    let Some(target) = state.target.clone() else { return Vec::new() };
    let done = |task: &&mut Task| task.step().status.eq_ignore_ascii_case("COMPLETE") && !task.written;
    let tasks = state.tasks.iter_mut().filter(done).map(|task| {
        task.written = true;
        (task.clone(), target.clone())
    });
    tasks.collect()
}

pub(super) async fn write(task: &Task, target: &ExportTarget) -> Result<(), String> {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(&target.endpoint)
        .region(Region::new(target.region.clone()))
        .credentials_provider(Credentials::new(&target.access_key, &target.secret_key, None, None, "rds"))
        .force_path_style(true)
        .build();
    let client = aws_sdk_s3::Client::from_conf(config);
    let prefix = if task.prefix.is_empty() { String::new() } else { format!("{}/", task.prefix) };
    for (name, content) in documents(task) {
        let key = format!("{prefix}{}/{name}", task.id);
        let put = client.put_object().bucket(&task.bucket).key(key).body(ByteStream::from(content));
        put.send().await.map_err(|error| format!("{error:?}"))?;
    }
    Ok(())
}

/// Every file below the task's folder.
fn documents(task: &Task) -> Vec<(String, Vec<u8>)> {
    let mut documents = Vec::new();
    for table in &task.course.tables {
        let mut parts = table.target.splitn(2, '.');
        let folder = format!("{}/{}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        documents.extend(table.files.iter().map(|(name, content)| (format!("{folder}/{name}"), content.clone())));
    }
    // In two documents, as RDS splits long lists.
    let (half, total) = (task.course.tables.len().div_ceil(2), task.course.tables.len());
    for (range, from) in [(0..half, 1), (half..total, half + 1)] {
        let name = format!("export_tables_info_{}_from_{from}_to_{}.json", task.id, range.end);
        let tables: Vec<Value> = task.course.tables[range.clone()].iter().map(table).collect();
        if !range.is_empty() {
            documents.push((name, json!({"perTableStatus": tables}).to_string().into_bytes()));
        }
    }
    let gigabytes: f64 = task.course.tables.iter().map(|table| table.size_gb).sum();
    let info = json!({
        "exportTaskIdentifier": task.id, "sourceArn": task.source_arn, "exportOnly": task.only,
        "snapshotTime": "Jun 21, 2025 2:00:00 AM", "taskStartTime": "Jun 21, 2025 2:30:00 PM",
        "taskEndTime": "Jun 21, 2025 3:05:00 PM", "s3Bucket": task.bucket, "s3Prefix": task.prefix,
        "exportedFilesPath": format!("{}/{}", task.prefix, task.id), "iamRoleArn": task.role_arn,
        "kmsKeyId": task.kms_key_id, "status": "COMPLETE", "percentProgress": 100,
        "totalExportedDataInGB": gigabytes,
    });
    documents.push((format!("export_info_{}.json", task.id), info.to_string().into_bytes()));
    documents
}

fn table(table: &super::model::ExportedTable) -> Value {
    let columns = json!([{"columnName": "id", "originalType": "bigint", "expectedExportedType": "int64",
                          "originalCharMaxLength": 0, "originalNumPrecision": 64, "originalDateTimePrecision": 0}]);
    let mut status = json!({
        "tableStatistics": {
            "extractionStartTime": "Jun 21, 2025 2:55:00 PM", "extractionEndTime": "Jun 21, 2025 2:56:00 PM",
            "partitioningInfo": {"numberOfPartitions": 1, "numberOfCompletedPartitions": 1},
        },
        "schemaMetadata": {"originalTypeMappings": columns},
        "status": table.status, "sizeGB": table.size_gb, "target": table.target,
    });
    if let Some(warning) = &table.warning {
        status["warningMessage"] = json!(warning);
    }
    status
}
