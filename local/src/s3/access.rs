//! Who may do what: key pairs, and the IAM actions that an operation needs.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::path::S3Path;
use s3s::{S3Error, S3Result, s3_error};

use super::exchange::Exchange;
use super::faults::FaultAction;
use super::refusal::refuse;
use super::store::Store;

/// The owner of every bucket; another `x-amz-expected-bucket-owner` is refused.
pub const ACCOUNT_ID: &str = "123456789012";

/// What a key pair may do: IAM action (`s3:PutObject`; a trailing `*` is a wildcard) and key prefix (empty: the whole bucket).
///
/// For `s3:ListBucket` and `s3:ListBucketVersions` the prefix is held against the request's `prefix`, as a policy condition on
/// `s3:prefix` would. Other actions on a bucket have no such condition key, so that one never holds: they need the whole bucket.
/// As under such a condition, only an unrestricted `s3:ListBucket` makes a missing key a 404 instead of a 403.
#[derive(Debug, Clone, Default)]
pub struct Permissions {
    pub allow: Vec<(String, String)>,
}

impl Permissions {
    pub fn allows(&self, action: &str, resource: &str) -> bool {
        self.allow.iter().any(|(allowed, prefix)| {
            let action_fits = match allowed.strip_suffix('*') {
                Some(start) => action.starts_with(start),
                None => allowed == action,
            };
            action_fits && resource.starts_with(prefix.as_str())
        })
    }
}

#[derive(Debug, Default)]
pub(super) struct Keys {
    pairs: HashMap<String, (String, Option<Permissions>)>,
}

impl Keys {
    pub(super) fn add(&mut self, access_key: &str, secret_key: &str, permissions: Option<Permissions>) {
        self.pairs.insert(access_key.to_owned(), (secret_key.to_owned(), permissions));
    }

    pub(super) fn restrict(&mut self, access_key: &str, permissions: Permissions) {
        if let Some((_, held)) = self.pairs.get_mut(access_key) {
            *held = Some(permissions);
        }
    }
}

impl Store {
    /// Whether the key pair may perform the action on the resource (a key, or a listing's prefix).
    pub(super) fn allows(&self, access_key: Option<&str>, action: &str, resource: &str) -> bool {
        let lists = action.starts_with("s3:ListBucket");
        if lists && self.no_list.load(Ordering::Relaxed) {
            return false;
        }
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        match access_key.and_then(|access_key| keys.pairs.get(access_key)) {
            Some((_, Some(permissions))) => permissions.allows(action, resource),
            Some((_, None)) => true,
            None => false,
        }
    }

    pub(super) fn require(&self, access_key: Option<&str>, action: &str, resource: &str) -> S3Result<()> {
        if self.allows(access_key, action, resource) { Ok(()) } else { Err(denied(action)) }
    }
}

fn denied(action: &str) -> S3Error {
    s3_error!(
        AccessDenied,
        "User is not authorized to perform: {action} on resource because no identity-based policy allows it"
    )
}

pub(super) struct Gate {
    pub(super) store: Arc<Store>,
}

#[async_trait::async_trait]
impl S3Auth for Gate {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let keys = self.store.keys.lock().unwrap_or_else(PoisonError::into_inner);
        match keys.pairs.get(access_key) {
            Some((secret, _)) => Ok(SecretKey::from(secret.as_str())),
            None => {
                Err(s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records."))
            }
        }
    }
}

#[async_trait::async_trait]
impl S3Access for Gate {
    /// Runs once the signature is verified and before the body is read. Faults that forbid execution act here.
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let operation = context.s3_op().name().to_owned();
        let (bucket, key) = match context.s3_path() {
            S3Path::Root => (None, None),
            S3Path::Bucket { bucket } => (Some(bucket.to_string()), None),
            S3Path::Object { bucket, key } => (Some(bucket.to_string()), Some(key.to_string())),
        };
        let access_key = context.credentials().map(|credentials| credentials.access_key.clone());
        let query = Query::parse(context.uri().query().unwrap_or_default());
        let bypass = context.headers().contains_key("x-amz-bypass-governance-retention");
        let owner_differs = context
            .headers()
            .get("x-amz-expected-bucket-owner")
            .is_some_and(|owner| owner.as_bytes() != ACCOUNT_ID.as_bytes());

        let exchange = context.extensions_mut().get::<Arc<Exchange>>().cloned();
        if let Some(exchange) = &exchange {
            exchange.name(&operation, bucket, key.clone());
        }
        let strike = self.store.faults().strike(&operation, key.as_deref());
        if let Some(action) = strike {
            befall(action, exchange.as_deref()).await?;
        }

        if access_key.is_none() {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        if owner_differs {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        // DeleteObjects is judged key by key.
        if operation == "DeleteObjects" {
            return Ok(());
        }
        let knows_prefix = matches!(operation.as_str(), "ListObjects" | "ListObjectsV2" | "ListObjectVersions");
        let resource = match &key {
            Some(key) => key.clone(),
            None => query.prefix.filter(|_| knows_prefix).unwrap_or_default(),
        };
        // "How to perform conditional deletes", "Conditional requests": comparing an ETag is reading.
        let compares = context.headers().get("if-match").is_some_and(|wanted| wanted.as_bytes() != b"*");
        if compares && matches!(operation.as_str(), "DeleteObject" | "PutObject" | "CompleteMultipartUpload") {
            self.store.require(access_key.as_deref(), "s3:GetObject", &resource)?;
        }
        for action in actions(&operation, query.versioned, bypass) {
            self.store.require(access_key.as_deref(), &action, &resource)?;
        }
        Ok(())
    }
}

/// Ok where the operation is to be executed nevertheless.
async fn befall(action: FaultAction, exchange: Option<&Exchange>) -> S3Result<()> {
    match action {
        FaultAction::Status { status, code } => Err(fault_error(status, &code)),
        FaultAction::ErrorIn200 { code } => Err(fault_error(200, &code)),
        FaultAction::Delay(wait) => {
            tokio::time::sleep(wait).await;
            Ok(())
        }
        FaultAction::Hang(wait) => {
            tokio::time::sleep(wait).await;
            Err(cut(exchange, FaultAction::Hang(wait)))
        }
        FaultAction::ResetBefore => Err(cut(exchange, FaultAction::ResetBefore)),
        later @ (FaultAction::ResetAfter | FaultAction::CorruptBody | FaultAction::Truncate) => {
            if let Some(exchange) = exchange {
                exchange.set_fault(later);
            }
            Ok(())
        }
    }
}

/// The error is never sent: the connection ends before a response.
fn cut(exchange: Option<&Exchange>, action: FaultAction) -> S3Error {
    if let Some(exchange) = exchange {
        exchange.set_fault(action);
    }
    s3_error!(InternalError, "connection cut")
}

fn fault_error(status: u16, code: &str) -> S3Error {
    refuse(status, code, format_args!("a programmed failure"))
}

struct Query {
    prefix: Option<String>,
    versioned: bool,
}

impl Query {
    fn parse(query: &str) -> Self {
        let value = |name: &str| {
            query.split('&').find_map(|pair| pair.split_once('=').filter(|(n, _)| *n == name).map(|(_, value)| value))
        };
        let prefix = value("prefix").map(|text| {
            let text = text.replace('+', " ");
            percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
        });
        Self { prefix, versioned: value("versionId").is_some() }
    }
}

/// The IAM actions of an operation ("Actions, resources, and condition keys for Amazon S3").
fn actions(operation: &str, versioned: bool, bypass: bool) -> Vec<String> {
    let action = match operation {
        "PutObject"
        | "CreateMultipartUpload"
        | "UploadPart"
        | "UploadPartCopy"
        | "CompleteMultipartUpload"
        | "CopyObject" => "PutObject",
        "GetObject" | "HeadObject" if versioned => "GetObjectVersion",
        "GetObject" | "HeadObject" => "GetObject",
        "DeleteObject" if versioned => "DeleteObjectVersion",
        "ListObjects" | "ListObjectsV2" | "HeadBucket" => "ListBucket",
        "ListObjectVersions" => "ListBucketVersions",
        "ListMultipartUploads" => "ListBucketMultipartUploads",
        "ListParts" => "ListMultipartUploadParts",
        "ListBuckets" => "ListAllMyBuckets",
        "GetBucketLifecycleConfiguration" => "GetLifecycleConfiguration",
        "PutBucketLifecycleConfiguration" | "DeleteBucketLifecycle" => "PutLifecycleConfiguration",
        "GetObjectLockConfiguration" => "GetBucketObjectLockConfiguration",
        "PutObjectLockConfiguration" => "PutBucketObjectLockConfiguration",
        "GetObjectTagging" if versioned => "GetObjectVersionTagging",
        "PutObjectTagging" if versioned => "PutObjectVersionTagging",
        "DeleteObjectTagging" if versioned => "DeleteObjectVersionTagging",
        other => other,
    };
    let mut actions = vec![format!("s3:{action}")];
    if bypass && matches!(operation, "DeleteObject" | "PutObjectRetention") {
        actions.push("s3:BypassGovernanceRetention".into());
    }
    actions
}
