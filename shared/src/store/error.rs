//! What can go wrong with the store, and what the operator can do about it.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::fault::{Fault, chain};

#[derive(Debug, thiserror::Error)]
#[error("{operation} on s3://{bucket}/{key} failed")]
pub struct StoreError {
    pub operation: &'static str,
    pub bucket: String,
    pub key: String,
    pub status: Option<u16>,
    /// S3's error code, such as `SlowDown`.
    pub code: Option<String>,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl StoreError {
    pub fn from_sdk<E>(operation: &'static str, bucket: &str, key: &str, error: SdkError<E, HttpResponse>) -> Self
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        Self {
            operation,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            status: error.raw_response().map(|response| response.status().as_u16()),
            code: error.code().map(str::to_owned),
            source: Box::new(error),
        }
    }

    /// Something that is wrong though the call succeeded.
    pub fn unexpected(operation: &'static str, bucket: &str, key: &str, problem: impl Into<String>) -> Self {
        let source: Box<dyn std::error::Error + Send + Sync> = problem.into().into();
        Self { operation, bucket: bucket.to_owned(), key: key.to_owned(), status: Some(200), code: None, source }
    }

    /// An answer that did not come to its end.
    pub fn broken_off(operation: &'static str, bucket: &str, key: &str, problem: impl Into<String>) -> Self {
        Self { status: None, ..Self::unexpected(operation, bucket, key, problem) }
    }

    /// No object there, as far as the store says.
    pub fn is_absent(&self) -> bool {
        self.status == Some(404) && self.code.as_deref() != Some("NoSuchBucket")
    }

    /// No object there; or none that a caller without `s3:ListBucket` is told of, which S3 answers with 403.
    pub fn is_absent_or_hidden(&self) -> bool {
        self.is_absent()
            || self.status == Some(403) && matches!(self.code.as_deref(), None | Some("AccessDenied" | "Forbidden"))
    }

    /// It is there, as far as anybody knows, and the caller may not read it, or the key that it is encrypted under is refused.
    pub fn is_refused(&self) -> bool {
        self.status == Some(403) && matches!(self.code.as_deref(), None | Some("AccessDenied" | "Forbidden"))
            || self.code.as_deref().is_some_and(|code| code.starts_with("KMS."))
    }

    pub fn is_precondition_failed(&self) -> bool {
        self.status == Some(412)
    }

    /// Another write of the same key was under way: nothing is decided.
    pub fn is_conflict(&self) -> bool {
        self.status == Some(409)
    }

    pub fn is_no_such_upload(&self) -> bool {
        self.code.as_deref() == Some("NoSuchUpload")
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        let (code, hint) = match error.code.as_deref() {
            Some("NoSuchBucket") => ("store-no-bucket", Some("check BUCKET and the endpoint")),
            Some("AccessDenied" | "AllAccessDisabled") => (
                "store-access-denied",
                Some("the function's role needs the rights in docs/deploy.md on this bucket and prefix"),
            ),
            Some(
                "ExpiredToken"
                | "ExpiredTokenException"
                | "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken",
            ) => ("store-credentials-rejected", Some("the credentials have expired or are not this store's")),
            Some("SlowDown" | "ServiceUnavailable" | "InternalError" | "RequestTimeout") => (
                "store-unavailable",
                Some("the store was still failing after several attempts; the next run starts afresh"),
            ),
            Some("NoSuchKey" | "NoSuchVersion") => {
                ("backup-object-missing", Some("it was deleted, whatever its manifest says: restore another backup"))
            }
            Some("InvalidObjectState") => (
                "store-object-archived",
                Some("the object has to be thawed; a restore does that where it reads a dump"),
            ),
            Some("GlacierExpeditedRetrievalNotAvailable") => {
                ("restore-expedited-unavailable", Some("S3 has no capacity for it now: ask with tier standard"))
            }
            // The answer to a HEAD has no body, and so no code.
            None if error.status == Some(403) => (
                "store-access-denied",
                Some("the function's role needs the rights in docs/deploy.md on this bucket and prefix"),
            ),
            Some("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
                ("store-wrong-region", Some("set S3_REGION to the bucket's region"))
            }
            _ if error.is_conflict() => {
                ("store-conflict", Some("something else writes under this key; the next run starts afresh"))
            }
            _ if matches!(error.status, Some(500..=599)) => (
                "store-unavailable",
                Some("the store was still failing after several attempts; the next run starts afresh"),
            ),
            _ if error.status.is_none() => {
                ("store-unreachable", Some("check the endpoint, and in a VPC the S3 gateway endpoint"))
            }
            _ => ("store-failed", None),
        };
        let fault = Self::new(code, chain(&error));
        match hint {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    }
}
