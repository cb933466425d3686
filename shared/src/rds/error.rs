//! What RDS refuses or fails with, and what the operator can do about it.

use aws_sdk_rds::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::fault::Fault;

#[derive(Debug, thiserror::Error)]
#[error("{operation} of {about} failed")]
pub struct RdsError {
    pub operation: &'static str,
    /// The identifier the call was about.
    pub about: String,
    pub kind: RdsErrorKind,
    /// RDS's error code, such as `DBSnapshotNotFound`.
    pub code: Option<String>,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RdsErrorKind {
    Throttled,
    AccessDenied,
    Credentials,
    NotFound,
    AlreadyExists,
    /// Of the snapshot, the instance or the cluster.
    InvalidState,
    Quota,
    /// Disabled, about to be deleted, or not ours to use.
    KeyNotAccessible,
    RoleNotFound,
    RoleLacksRights,
    BucketNotAccessible,
    ExportOnlyInvalid,
    Unavailable,
    Refused,
}

impl RdsErrorKind {
    /// Source: Amazon RDS API Reference, each action's errors and "Common Errors".
    fn of(code: Option<&str>, status: Option<u16>) -> Self {
        let Some(code) = code else {
            return match status {
                Some(429) => Self::Throttled,
                Some(403) => Self::AccessDenied,
                Some(400..=499) => Self::Refused,
                _ => Self::Unavailable,
            };
        };
        match code {
            "Throttling"
            | "ThrottlingException"
            | "ThrottledException"
            | "RequestThrottled"
            | "RequestThrottledException"
            | "RequestLimitExceeded"
            | "TooManyRequestsException"
            | "SlowDown" => Self::Throttled,
            "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" | "NotAuthorized" | "OptInRequired" => {
                Self::AccessDenied
            }
            "ExpiredToken"
            | "ExpiredTokenException"
            | "InvalidClientTokenId"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "MissingAuthenticationToken" => Self::Credentials,
            "KMSKeyNotAccessibleFault" => Self::KeyNotAccessible,
            "IamRoleNotFound" | "IamRoleNotFoundFault" => Self::RoleNotFound,
            "IamRoleMissingPermissions" | "IamRoleMissingPermissionsFault" => Self::RoleLacksRights,
            "InvalidS3BucketFault" => Self::BucketNotAccessible,
            "InvalidExportOnly" | "InvalidExportOnlyFault" => Self::ExportOnlyInvalid,
            "InternalFailure" | "InternalError" | "ServiceUnavailable" | "RequestTimeout" => Self::Unavailable,
            _ => {
                let name = code.strip_suffix("Fault").unwrap_or(code);
                let quota = ["QuotaExceeded", "LimitExceeded", "LimitReached"];
                if name.ends_with("NotFound") {
                    Self::NotFound
                } else if name.ends_with("AlreadyExists") {
                    Self::AlreadyExists
                } else if quota.iter().any(|end| name.ends_with(end)) || name.starts_with("Insufficient") {
                    Self::Quota
                } else if name.starts_with("Invalid") && name.ends_with("State") {
                    Self::InvalidState
                } else if status.is_some_and(|status| status >= 500) {
                    Self::Unavailable
                } else {
                    Self::Refused
                }
            }
        }
    }
}

impl RdsError {
    pub fn from_sdk<E>(operation: &'static str, about: &str, error: SdkError<E, HttpResponse>) -> Self
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = error.code().map(str::to_owned);
        let kind = RdsErrorKind::of(code.as_deref(), status);
        // The SDK's error says "service error" and hides what RDS says behind it.
        let source: Box<dyn std::error::Error + Send + Sync> = match (&code, error.message()) {
            (Some(code), Some(message)) => format!("{code}: {message}").into(),
            _ => Box::new(error),
        };
        Self { operation, about: about.to_owned(), kind, code, source }
    }

    /// An answer that lacks what it has to hold.
    pub fn unexpected(operation: &'static str, about: &str, problem: impl Into<String>) -> Self {
        let source: Box<dyn std::error::Error + Send + Sync> = problem.into().into();
        Self { operation, about: about.to_owned(), kind: RdsErrorKind::Unavailable, code: None, source }
    }
}

impl From<RdsError> for Fault {
    fn from(error: RdsError) -> Self {
        let (code, hint) = match error.kind {
            RdsErrorKind::Throttled => {
                ("rds-throttled", "RDS was still throttling after several rounds; it is tried again")
            }
            RdsErrorKind::AccessDenied => {
                ("rds-access-denied", "the function's role needs the rights in docs/deploy.md; the cause names the one")
            }
            RdsErrorKind::Credentials => {
                ("rds-credentials-rejected", "the credentials have expired or are not this account's")
            }
            RdsErrorKind::NotFound => ("rds-not-found", "check the identifier, the region and the account"),
            RdsErrorKind::AlreadyExists => ("rds-already-exists", "choose another identifier"),
            RdsErrorKind::InvalidState => ("rds-invalid-state", "wait until it is available, or choose another"),
            RdsErrorKind::Quota => {
                ("rds-quota", "raise the quota in Service Quotas, or delete what is no longer needed")
            }
            RdsErrorKind::KeyNotAccessible => (
                "rds-key-not-accessible",
                "the KMS key is disabled, about to be deleted, in another region, or its policy lacks kms:DescribeKey and kms:CreateGrant for the function's role",
            ),
            RdsErrorKind::RoleNotFound => (
                "rds-export-role-not-found",
                "EXPORT_ROLE_ARN has to name a role of this account that export.rds.amazonaws.com may assume",
            ),
            RdsErrorKind::RoleLacksRights => (
                "rds-export-role-rights",
                "the export's role needs s3:PutObject*, GetObject*, DeleteObject* on the rds-exports prefix, s3:ListBucket and s3:GetBucketLocation, and a trust policy for export.rds.amazonaws.com",
            ),
            RdsErrorKind::BucketNotAccessible => (
                "rds-bucket-not-accessible",
                "the bucket has to be in the snapshot's region, and the export's role has to reach it",
            ),
            RdsErrorKind::ExportOnlyInvalid => {
                ("rds-export-only-invalid", "a table is named database.schema.table, and has to be in the snapshot")
            }
            RdsErrorKind::Unavailable => {
                ("rds-unavailable", "RDS did not answer as it should; the next run tries again")
            }
            RdsErrorKind::Refused => ("rds-request-refused", "the cause is what RDS says"),
        };
        Self::from_error(code, &error).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_rds_s_codes_has_a_meaning() {
        for (code, status, kind) in [
            (Some("Throttling"), 400, RdsErrorKind::Throttled),
            (Some("RequestLimitExceeded"), 400, RdsErrorKind::Throttled),
            (Some("DBSnapshotNotFound"), 404, RdsErrorKind::NotFound),
            (Some("DBClusterSnapshotNotFoundFault"), 404, RdsErrorKind::NotFound),
            (Some("ExportTaskAlreadyExists"), 400, RdsErrorKind::AlreadyExists),
            (Some("DBInstanceAlreadyExists"), 400, RdsErrorKind::AlreadyExists),
            (Some("InvalidExportSourceState"), 400, RdsErrorKind::InvalidState),
            (Some("InvalidDBSnapshotState"), 400, RdsErrorKind::InvalidState),
            (Some("InvalidDBClusterSnapshotStateFault"), 400, RdsErrorKind::InvalidState),
            (Some("SnapshotQuotaExceeded"), 400, RdsErrorKind::Quota),
            (Some("ExportTaskLimitReachedFault"), 400, RdsErrorKind::Quota),
            (Some("InsufficientDBInstanceCapacity"), 400, RdsErrorKind::Quota),
            (Some("KMSKeyNotAccessibleFault"), 400, RdsErrorKind::KeyNotAccessible),
            (Some("IamRoleNotFound"), 404, RdsErrorKind::RoleNotFound),
            (Some("IamRoleMissingPermissions"), 400, RdsErrorKind::RoleLacksRights),
            (Some("InvalidS3BucketFault"), 400, RdsErrorKind::BucketNotAccessible),
            (Some("InvalidExportOnly"), 400, RdsErrorKind::ExportOnlyInvalid),
            (Some("AccessDenied"), 403, RdsErrorKind::AccessDenied),
            (Some("ExpiredToken"), 403, RdsErrorKind::Credentials),
            (Some("InternalFailure"), 500, RdsErrorKind::Unavailable),
            (Some("Strange"), 503, RdsErrorKind::Unavailable),
            (Some("InvalidParameterValue"), 400, RdsErrorKind::Refused),
            (None, 502, RdsErrorKind::Unavailable),
            (None, 403, RdsErrorKind::AccessDenied),
        ] {
            assert_eq!(RdsErrorKind::of(code, Some(status)), kind, "{code:?} {status}");
        }
        assert_eq!(RdsErrorKind::of(None, None), RdsErrorKind::Unavailable, "no answer at all");
    }
}
