//! What an export says of itself: `export_info_….json` and `export_tables_info_….json` in its folder.
//!
//! Amazon RDS writes both and describes neither. What is not there is not made up: a field that is missing is unknown.

use serde::Deserialize;
use serde_json::Value;

/// The export as a whole.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportInfo {
    pub export_task_identifier: String,
    #[serde(default)]
    pub status: Option<String>,
    #[serde(rename = "totalExportedDataInGB", default)]
    pub total_gb: Option<f64>,
    /// Times in words, such as `Oct 17, 2020 1:14:58 AM`.
    #[serde(default)]
    pub snapshot_time: Option<String>,
    #[serde(default)]
    pub task_start_time: Option<String>,
    #[serde(default)]
    pub task_end_time: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TableReport {
    pub database: String,
    /// Empty where the target is a whole database.
    pub schema: String,
    pub name: String,
    /// `COMPLETE`, unless something went wrong.
    pub status: Option<String>,
    pub size_gb: Option<f64>,
    pub warning: Option<String>,
    pub columns: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    per_table_status: Vec<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    target: String,
    #[serde(default)]
    status: Option<String>,
    #[serde(rename = "sizeGB", default)]
    size_gb: Option<f64>,
    #[serde(default)]
    warning_message: Option<Value>,
    #[serde(default)]
    schema_metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    original_type_mappings: Vec<Mapping>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    #[serde(default)]
    column_name: String,
}

impl TableReport {
    /// `database.schema.table`.
    pub fn target(&self) -> String {
        let parts = [&self.database, &self.schema, &self.name];
        parts.into_iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join(".")
    }

    pub fn is_complete(&self) -> bool {
        self.status.as_deref().is_some_and(|status| status.eq_ignore_ascii_case("COMPLETE"))
    }

    /// The folder below the export's that holds the table's files.
    /// Source: Amazon RDS User Guide, "File naming conventions for exports to Amazon S3".
    pub fn folder(&self) -> String {
        let folder = format!("{}/{}.{}/", self.database, self.schema, self.name);
        folder.replace(['\\', '`', '"', ' '], "_")
    }

    /// What is to be told about it, if anything is.
    pub fn trouble(&self) -> Option<String> {
        let status = self.status.as_deref().unwrap_or("without a status");
        match (&self.warning, self.is_complete()) {
            (Some(warning), true) => Some(format!("{}: {warning}", self.target())),
            (Some(warning), false) if self.status.is_none() => Some(format!("{}: {warning}", self.target())),
            (Some(warning), false) => Some(format!("{} is {status}: {warning}", self.target())),
            (None, false) => Some(format!("{} is {status}", self.target())),
            (None, true) => None,
        }
    }
}

/// Reads `export_info_….json`.
///
/// # Errors
/// It is not such a document.
pub fn parse_info(json: &[u8]) -> Result<ExportInfo, serde_json::Error> {
    serde_json::from_slice(json)
}

/// Reads one `export_tables_info_….json`.
///
/// # Errors
/// It is not such a document.
pub fn parse_tables(json: &[u8]) -> Result<Vec<TableReport>, serde_json::Error> {
    let document: Document = serde_json::from_slice(json)?;
    let tables = document.per_table_status.into_iter().map(|status| {
        let mut parts = status.target.splitn(3, '.').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let (database, schema, name) = (part(), part(), part());
        let warning = status.warning_message.map(|warning| match warning {
            Value::String(text) => text,
            other => other.to_string(),
        });
        let columns = status.schema_metadata.original_type_mappings.into_iter().map(|column| column.column_name);
        TableReport {
            database,
            schema,
            name,
            status: status.status,
            size_gb: status.size_gb,
            warning: warning.filter(|text| !text.is_empty() && text != "null"),
            columns: columns.collect(),
        }
    });
    Ok(tables.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_as_rds_writes_them_are_read() {
        let info = br#"{"exportTaskIdentifier":"export-20250621-143000","sourceArn":"arn","exportOnly":[],
            "snapshotTime":"Jun 21, 2025 2:00:00 AM","taskStartTime":"Jun 21, 2025 2:30:00 PM",
            "taskEndTime":"Jun 21, 2025 3:05:00 PM","s3Bucket":"b","s3Prefix":"p","exportedFilesPath":"p/e",
            "status":"COMPLETE","percentProgress":100,"totalExportedDataInGB":0.5}"#;
        let info = parse_info(info).unwrap();
        assert_eq!((info.total_gb, info.status.as_deref()), (Some(0.5), Some("COMPLETE")));

        let tables = br#"{"perTableStatus":[
            {"tableStatistics":{"partitioningInfo":{"numberOfPartitions":1}},
             "schemaMetadata":{"originalTypeMappings":[{"columnName":"id","originalType":"bigint"}]},
             "status":"COMPLETE","sizeGB":1.5e-6,"target":"shop.public.orders"},
            {"status":"FAILED","target":"shop.public.we.ird","warningMessage":"row too large"},
            {"warningMessage":"skipped: unlogged","target":"shop"},
            {"status":"SKIPPED","target":"shop.public.a/b","warningMessage":null}]}"#;
        let tables = parse_tables(tables).unwrap();
        assert_eq!(
            (tables[0].target(), tables[0].size_gb, tables[0].trouble()),
            ("shop.public.orders".into(), Some(1.5e-6), None)
        );
        assert_eq!((tables[0].folder(), &tables[0].columns), ("shop/public.orders/".into(), &vec!["id".to_owned()]));
        assert_eq!((tables[1].schema.as_str(), tables[1].name.as_str()), ("public", "we.ird"));
        let troubles: Vec<String> = tables.iter().filter_map(TableReport::trouble).collect();
        assert_eq!(
            troubles,
            ["shop.public.we.ird is FAILED: row too large", "shop: skipped: unlogged", "shop.public.a/b is SKIPPED"]
        );
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        assert!(parse_info(b"{}").is_err());
        assert!(parse_tables(b"{}").is_err());
        assert!(parse_tables(b"[]").is_err());
    }
}
