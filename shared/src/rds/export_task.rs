//! Export tasks: a snapshot's data as Parquet files in a bucket.

use crate::domain::export_task::{ExportTask, TaskStatus};
use crate::domain::rds::SnapshotArn;
use crate::rds::client::{PAGE, moment};
use crate::rds::{Rds, RdsError, RdsErrorKind};

/// What is asked of StartExportTask.
#[derive(Debug, Clone)]
pub struct NewExport<'a> {
    /// Unique in the account; the folder below the prefix that RDS writes into.
    pub id: &'a str,
    pub source: &'a SnapshotArn,
    pub bucket: &'a str,
    /// Without a slash at its end.
    pub prefix: &'a str,
    pub role_arn: &'a str,
    pub kms_key_id: &'a str,
    /// `database`, `database.schema` or `database.schema.table`; empty for all.
    pub only: &'a [String],
}

impl Rds {
    /// Starts a task, which RDS may refuse later as well.
    /// Source: Amazon RDS API Reference, StartExportTask.
    ///
    /// # Errors
    /// [`RdsError`]; its kind tells a quota from what will not pass.
    pub async fn start_export(&self, export: &NewExport<'_>) -> Result<ExportTask, RdsError> {
        let only = (!export.only.is_empty()).then(|| export.only.to_vec());
        let request = self
            .client
            .start_export_task()
            .export_task_identifier(export.id)
            .source_arn(export.source.to_string())
            .s3_bucket_name(export.bucket)
            .s3_prefix(export.prefix)
            .iam_role_arn(export.role_arn)
            .kms_key_id(export.kms_key_id)
            .set_export_only(only);
        let output = self.call("StartExportTask", export.id, || request.clone().send()).await?;
        Ok(ExportTask {
            id: output.export_task_identifier.unwrap_or_else(|| export.id.to_owned()),
            source_arn: output.source_arn.unwrap_or_else(|| export.source.to_string()),
            status: status(output.status.as_deref()),
            percent: 0,
            extracted_gb: 0,
            failure_cause: output.failure_cause,
            warning: output.warning_message,
            started: moment(output.task_start_time.as_ref()),
            ended: moment(output.task_end_time.as_ref()),
            bucket: output.s3_bucket.unwrap_or_default(),
            prefix: output.s3_prefix.unwrap_or_default(),
        })
    }

    /// One task; `None` where there is none of this identifier.
    pub async fn export_task(&self, id: &str) -> Result<Option<ExportTask>, RdsError> {
        let request = self.client.describe_export_tasks().export_task_identifier(id);
        match self.call("DescribeExportTasks", id, || request.clone().send()).await {
            Ok(page) => Ok(page.export_tasks().iter().map(task).find(|task| task.id == id)),
            Err(error) if error.kind == RdsErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every task of the account and region that is under way, ours or not.
    pub async fn export_tasks_under_way(&self) -> Result<Vec<ExportTask>, RdsError> {
        let mut found = Vec::new();
        let mut marker: Option<String> = None;
        loop {
            let request = self.client.describe_export_tasks().max_records(PAGE).set_marker(marker.take());
            let page = self.call("DescribeExportTasks", "all tasks", || request.clone().send()).await?;
            found.extend(page.export_tasks().iter().map(task).filter(|task| task.status.is_under_way()));
            match page.marker {
                Some(next) => marker = Some(next),
                None => return Ok(found),
            }
        }
    }
}

fn task(task: &aws_sdk_rds::types::ExportTask) -> ExportTask {
    ExportTask {
        id: task.export_task_identifier().unwrap_or_default().to_owned(),
        source_arn: task.source_arn().unwrap_or_default().to_owned(),
        status: status(task.status()),
        percent: u8::try_from(task.percent_progress().unwrap_or_default().clamp(0, 100)).unwrap_or_default(),
        extracted_gb: u64::try_from(task.total_extracted_data_in_gb().unwrap_or_default()).unwrap_or_default(),
        failure_cause: task.failure_cause().filter(|text| !text.is_empty()).map(str::to_owned),
        warning: task.warning_message().filter(|text| !text.is_empty()).map(str::to_owned),
        started: moment(task.task_start_time()),
        ended: moment(task.task_end_time()),
        bucket: task.s3_bucket().unwrap_or_default().to_owned(),
        prefix: task.s3_prefix().unwrap_or_default().to_owned(),
    }
}

/// An answer without a status is that of a task that has only just been begun.
fn status(text: Option<&str>) -> TaskStatus {
    TaskStatus::from(text.unwrap_or("STARTING").to_owned())
}
